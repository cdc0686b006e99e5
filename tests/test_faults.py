"""What a person sees, and what is left, when the machine fails a run that is under way."""

import contextlib
import math
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eigenscope import cli
from eigenscope.checkpoints import read_checkpoint
from eigenscope.data import ImageDataset
from eigenscope.lightning_modules import ImageClassificationModule
from eigenscope.results import StoppedRun
from eigenscope.results.run_metadata import RunMetadata

CONFIGS = Path(__file__).parents[1] / "configs"
NET = "--model.init_args.net.init_args"
LAST = Path("runs/demo/version_0/checkpoints/last.ckpt")
WHOLE = rf"earlier checkpoints are intact, resume with --ckpt_path {LAST}"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def arguments(*more, epochs=1, data=("train_size=100", "test_size=50", "batch_size=25", "num_workers=0")):
    """A tiny demo whose logs are in runs/demo, in the working directory."""
    return [
        *("fit", "--config", str(CONFIGS / "demo.yaml")),
        *(f"{NET}.{option}" for option in ("width=16", "depth=2", "num_heads=2")),
        *(f"--data.init_args.{option}" for option in data),
        "--model.init_args.lr_scheduler=null",
        "--trainer.accelerator=cpu",
        f"--trainer.max_epochs={epochs}",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        *more,
    ]


def said(monkeypatch, args):
    """What the installed command ends with, which the interpreter prints."""
    monkeypatch.setattr(sys, "argv", ["eigenscope", *args])
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # put back afterwards
    with pytest.raises(SystemExit) as stop:
        cli.script()
    assert "\n" not in stop.value.code
    return stop.value.code.removeprefix("error: ")


def goes_on(args, step):
    """The run resumes from its last checkpoint, which is of this step."""
    saved = read_checkpoint(LAST)
    assert saved["global_step"] == torch.load(LAST, weights_only=True)["global_step"] == step
    run = cli.main([*args, "--ckpt_path", str(LAST)])
    assert run.trainer.global_step > step
    assert run.trainer.log_dir == str(LAST.parents[1])
    assert RunMetadata.load(LAST.parents[1]).outcome == "finished"


@contextlib.contextmanager
def largest_file(size):
    """The operating system's own limit on files, which a full quota resembles."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def small_disk(folder, options):
    """A file system of its own; skips the test where the system lets nobody mount one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        os.chdir(folder.parent)
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_checkpoint_that_is_too_large_leaves_the_one_before(monkeypatch):
    cli.main(arguments(epochs=1))
    before = LAST.read_bytes()
    again = arguments("--ckpt_path", str(LAST), epochs=3)
    with largest_file(100_000):
        sentence = said(monkeypatch, again)
    assert re.fullmatch(rf"{LAST} could not be written: .*; {WHOLE}", sentence)
    assert LAST.read_bytes() == before
    assert sorted(path.name for path in LAST.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    record = RunMetadata.load(LAST.parents[1])
    assert record.outcome == "failed"
    goes_on(arguments(epochs=3), 4)


def test_a_full_disk_leaves_the_checkpoint_before(monkeypatch, tmp_path):
    with small_disk(tmp_path / "disk", "size=600k"):
        os.chdir("disk")
        sentence = said(monkeypatch, arguments(epochs=40))
        assert re.fullmatch(rf"{LAST} could not be written: .*; {WHOLE}", sentence)
        step = read_checkpoint(LAST)["global_step"]
        assert step >= 4
        subprocess.run(["mount", "-o", "remount,size=6m", tmp_path / "disk"], check=True)
        goes_on(arguments(epochs=step // 4 + 1), step)


LONG = ("train_size=100", "test_size=50", "batch_size=1", "num_workers=0")  # an epoch of many figures


def test_figures_that_find_no_room_end_the_run(monkeypatch, capfd):
    cli.main(arguments(epochs=1, data=LONG))
    with largest_file(18_000):
        sentence = said(monkeypatch, arguments("--ckpt_path", str(LAST), epochs=2, data=LONG))
    events = r"runs/demo/version_0/events\.out\.tfevents\.\S+"
    assert re.fullmatch(rf"{events} could not be written: File too large; {WHOLE}", sentence)
    assert "Traceback" not in capfd.readouterr().err  # of TensorBoard's own thread
    goes_on(arguments(epochs=2, data=LONG), 100)


@pytest.mark.parametrize("option", ["--trainer.logger.init_args.save_dir", "checkpoints"])
def test_a_folder_that_cannot_be_made_is_found_before_training(option, monkeypatch, capsys):
    Path("taken").write_text("a file")
    folder = "taken/runs"
    if option == "checkpoints":
        more = [f"--trainer.callbacks+={{class_path: ModelCheckpoint, init_args: {{dirpath: {folder}}}}}"]
        folder = Path.cwd() / folder
    else:
        more, folder = [f"{option}={folder}"], f"{folder}/demo/version_0"
    sentence = said(monkeypatch, arguments(*more))
    assert sentence == (
        f"logs and checkpoints cannot be written to {folder} ({Path.cwd() / 'taken'} is a file, not a folder); "
        "name a folder that can with --trainer.logger.init_args.save_dir or --trainer.default_root_dir"
    )
    assert "train acc" not in capsys.readouterr().out
    assert [path.name for path in Path.cwd().iterdir()] == ["taken"]


def test_a_disk_that_cannot_be_written_is_found_before_training(monkeypatch, tmp_path):
    with small_disk(tmp_path / "disk", "ro"):
        sentence = said(monkeypatch, arguments("--trainer.logger.init_args.save_dir=disk/runs"))
    expected = f"cannot be written to disk/runs/demo/version_0 ({tmp_path / 'disk'}: Read-only file system); name"
    assert expected in sentence


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_forbidden_folder_is_found_before_training(monkeypatch):
    Path("runs").mkdir(mode=0o500)
    assert f"({Path.cwd() / 'runs'}: Permission denied)" in said(monkeypatch, arguments())


@contextlib.contextmanager
def after_the_first_checkpoint(act):
    """Calls ``act`` from a thread, with the number of a loader process, once there are one and a checkpoint."""
    ended = threading.Event()

    def watch():
        while not ended.wait(0.01):
            processes = multiprocessing.active_children()
            if processes and LAST.exists():
                act(processes[0].pid)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


WORKER = ("train_size=100", "test_size=50", "batch_size=25", "num_workers=1")


def test_a_loader_process_that_is_killed(monkeypatch):
    with after_the_first_checkpoint(lambda pid: os.kill(pid, signal.SIGKILL)):
        sentence = said(monkeypatch, arguments(epochs=1000, data=WORKER))
    assert re.fullmatch(
        r"a process of the data loader \(pid \d+\) was killed by the signal 'Killed', as when memory runs out; fewer "
        rf"processes \(--data.init_args.num_workers\) or a smaller batch need less memory; {WHOLE}",
        sentence,
    )
    step = read_checkpoint(LAST)["global_step"]
    goes_on(arguments(epochs=step // 4 + 1, data=WORKER), step)


def test_a_batch_that_finds_no_room_in_shared_memory(monkeypatch, capfd):
    args = arguments("--trainer.num_sanity_val_steps=0", data=WORKER)
    with largest_file(200_000):  # of a batch's 307,200 bytes
        sentence = said(monkeypatch, args)
    assert re.fullmatch(
        r"a process of the data loader \(pid \d+\) ended, as when shared memory runs out, .*; no checkpoint had been "
        "saved before",
        sentence,
    )
    assert "unable to resize file" in capfd.readouterr().err


SLURM = {"SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_NODELIST": "localhost"}
SLURM |= {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("SIGINT", {}),
        pytest.param("SIGHUP", {}, marks=pytest.mark.long),
        ("SIGUSR1", SLURM),
    ],  # the last is the one at which Lightning would requeue
    ids=["SIGINT", "SIGHUP", "SIGUSR1 under SLURM"],
)
def test_a_signal_leaves_a_checkpoint(name, environment, monkeypatch, capfd):
    number = signal.Signals[name]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "argv", ["eigenscope", *arguments(epochs=1000, data=WORKER)])
    with after_the_first_checkpoint(lambda _: os.kill(os.getpid(), number)), pytest.raises(SystemExit) as stop:
        cli.script()
    assert stop.value.code == 128 + number
    step = read_checkpoint(LAST)["global_step"]
    said = capfd.readouterr().err.splitlines()[-1]
    assert said == f"{name} ended the run after step {step}; to resume: --ckpt_path {LAST}"
    assert RunMetadata.load(LAST.parents[1]).outcome == "interrupted"
    goes_on(arguments(epochs=step // 4 + 1, data=WORKER), step)


def test_a_checkpoint_of_requeueing_is_not_loaded_unasked(monkeypatch):
    for variable, value in SLURM.items():
        monkeypatch.setenv(variable, value)
    Path("hpc_ckpt_1.ckpt").touch()
    sentence = said(monkeypatch, arguments(f"--trainer.default_root_dir={Path.cwd()}"))
    assert sentence == (
        f"Lightning would begin with {Path.cwd()}/hpc_ckpt_1.ckpt, which its requeueing under SLURM has left, whatever "
        f"its configuration: resume from it with --ckpt_path {Path.cwd()}/hpc_ckpt_1.ckpt, or move it away"
    )


FOLDER = ["--data=CIFAR100DataModule", "--data.init_args.source=folder", "--data.init_args.protocol=test"]


def of_images(root, *more, workers=1, epochs=1):
    data = (f"root={root}", "batch_size=6", f"num_workers={workers}", "augmentation=none")
    args = arguments(*more, epochs=epochs, data=data)
    return [*args[:3], *FOLDER, *args[3:]]


def test_an_image_that_cannot_be_read_is_named_before_training(monkeypatch, make_tree):
    root = make_tree()
    image = root / "train" / "class01" / "003.png"
    image.write_bytes(image.read_bytes()[:100])
    sentence = said(monkeypatch, of_images(root))
    assert sentence.startswith(f"{image} is not a readable image: ")


def test_images_that_vanish_in_mid_run_do_not_matter(monkeypatch, make_tree):
    root = make_tree()

    def remove(pid):
        for path in root.rglob("*.png"):
            path.write_bytes(b"")
            path.unlink()

    with after_the_first_checkpoint(remove):
        run = cli.main(of_images(root, epochs=12))
    assert not list(root.rglob("*.png"))
    assert run.trainer.global_step == 12 * 3


def test_a_cache_that_is_cut_short_is_made_again(make_tree, capsys):
    root = make_tree()
    first = cli.main(of_images(root, workers=0))
    (cache,) = (root / ".eigenscope-cache").glob("train-*.pt")
    whole = cache.read_bytes()
    cache.write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    second = cli.main(of_images(root, workers=0))
    assert f"the cache {cache} is damaged or cut short (" in capsys.readouterr().out
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name


def test_a_cache_cut_short_in_mid_run_ends_the_loader_process(monkeypatch, make_tree):
    root = make_tree(train=40, size=64)

    def cut(pid):
        for cache in (root / ".eigenscope-cache").glob("*.pt"):
            os.truncate(cache, 4096)

    with after_the_first_checkpoint(cut):
        sentence = said(monkeypatch, of_images(root, epochs=1000))
    assert re.fullmatch(
        r"a process of the data loader \(pid \d+\) (ended|was killed by the signal 'Bus error'), as when shared memory "
        r"runs out, or a file it reads, such as an image cache, was cut short; fewer processes "
        rf"\(--data.init_args.num_workers\) or a smaller batch need less memory; {WHOLE}",
        sentence,
    )
    step = read_checkpoint(LAST)["global_step"]
    goes_on(of_images(root, epochs=step // 20 + 1), step)


def test_what_a_data_set_says_in_a_loader_process_is_kept(monkeypatch):
    plain = ImageDataset.__getitems__

    def spoiled(data, keys):
        if keys[0].epoch == 2 and len(keys) == 25:
            raise OSError(5, "the shelf\nis empty", "shelf/7.png")
        return plain(data, keys)

    monkeypatch.setattr(ImageDataset, "__getitems__", spoiled)
    sentence = said(monkeypatch, arguments(epochs=3, data=WORKER))
    monkeypatch.undo()
    start = "a batch could not be loaded: [Errno 5] the shelf is empty: 'shelf/7.png' (OSError in test_faults.py, line "
    assert sentence.startswith(start)
    assert sentence.endswith(f"); {WHOLE}")


@pytest.fixture
def spoiled_at(monkeypatch):
    """Makes the second attention layer give something that is not finite in chosen steps of training."""
    steps = set()
    plain = ImageClassificationModule.training_step

    def training_step(module, batch, batch_idx):
        def spoil(layer, args, output):
            return output * torch.nan if module.global_step in steps else output

        with module.net.blocks[1].attention.register_forward_hook(spoil, prepend=True):
            return plain(module, batch, batch_idx)

    monkeypatch.setattr(ImageClassificationModule, "training_step", training_step)
    return steps


DROPOUT = [f"{NET}.dropout=0.1"]
FOUND = "the first tensor that is not finite is the output of 'net.blocks.1.attention' (SelfAttention)"


def test_a_number_that_is_not_finite_stops(spoiled_at, monkeypatch):
    spoiled_at.add(6)
    sentence = said(monkeypatch, arguments(*DROPOUT, epochs=2))
    last_good = LAST.with_name("last_good.ckpt")
    assert sentence == f"step 6: {FOUND}; the state before it is in {last_good}"
    assert RunMetadata.load(LAST.parents[1]).stopped == StoppedRun(6, FOUND)
    assert read_checkpoint(last_good)["global_step"] == 6
    spoiled_at.clear()
    resumed = cli.main(arguments(*DROPOUT, "--ckpt_path", str(last_good), epochs=2))
    whole = cli.main(arguments(*DROPOUT, "--trainer.logger.init_args.save_dir=whole", epochs=2))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    for name, value in whole.trainer.callback_metrics.items():
        assert torch.equal(value, resumed.trainer.callback_metrics[name]), name


def test_steps_that_are_not_finite_are_skipped_up_to_a_limit(spoiled_at, monkeypatch, capsys):
    spoiled_at.update([5, 6, 9])
    skip = ("--finite_guard.policy=skip", "--finite_guard.max_skipped=2")
    run = cli.main(arguments(*skip, epochs=2))
    lines = [line for line in capsys.readouterr().out.splitlines() if "is skipped" in line]
    assert lines == [f"step {5 + n} is skipped, {n + 1} of at most 2: {FOUND}" for n in range(2)]
    epochs = RunMetadata.load(LAST.parents[1]).result.epochs
    assert [row.metrics["skipped_steps"] for row in epochs] == [0, 2]
    assert all(math.isfinite(row.metrics[name]) for row in epochs for name in ("train/loss", "train/acc", "val/loss"))
    events = EventAccumulator(run.trainer.log_dir).Reload().Scalars("skipped_steps")
    assert [(event.step, event.value) for event in events] == [(3, 0), (5, 1), (6, 2), (7, 2)]
    sentence = said(monkeypatch, arguments(*skip, "--ckpt_path", str(LAST), epochs=3))
    assert sentence.startswith(f"step 9: {FOUND}, after 2 skipped steps, of at most 2; the state before it is in ")
    goes_on(arguments(skip[0], "--finite_guard.max_skipped=3", epochs=3), 8)
