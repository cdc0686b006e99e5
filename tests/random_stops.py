"""Stops a training at random moments by a signal to all of its processes, resumes it each time, and looks at the end.

    python -m tests.random_stops FOLDER --times 10 --seed 0 --signal SIGTERM --ranks 2 --launch fork

A run of ``ranks`` ranks, each with loader processes, is sent the signal as ``kill -- -GROUP`` sends it, at a random
moment of its start, training, validation or saving. Each stop must leave exit code 128 + signal, one sentence, an
outcome in ``run.json`` that is not ``running``, and a checkpoint of the step that the sentence names; the next attempt
resumes from it. The last one ends as a run that nobody stopped, bit for bit. SIGKILL leaves the last checkpoint, which
is then saved after every step, and no more. ``fork`` forks the ranks from this process, which
has imported everything, as ``torchrun`` would start them; ``lightning`` and ``torchrun`` start them as people do.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

from eigenscope import cli
from eigenscope.checkpoints import read_checkpoint
from eigenscope.results.run_metadata import RunMetadata
from tests.ddp_pool import free_port, rank_environment
from tests.forks import run_and_exit

ROOT = Path(__file__).resolve().parents[1]
NET = "--model.init_args.net.init_args"
SENTENCE = re.compile(r"SIG\w+ ended the run after step (\d+); to resume: --ckpt_path (\S+)")
AT_ONCE = re.compile(r"SIG\w+ ended the run at once; no checkpoint was saved of that moment")


def arguments(folder: Path, number: int, ranks: int, epochs: int) -> list[str]:
    """A small demo with a process for its loaders."""
    config = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    for callback in config["trainer"]["callbacks"]:
        if callback["class_path"] == "ResumeCheckpoint" and number == signal.SIGKILL:
            callback["init_args"] = {"every_n_steps": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return [
        *("fit", "--config", str(folder / "run.yaml")),
        *(f"{NET}.{option}" for option in ("width=16", "depth=2", "num_heads=2", "dropout=0.1")),
        *(f"--data.init_args.{option}" for option in ("train_size=200", "test_size=400", "batch_size=20")),
        "--data.init_args.num_workers=1",
        "--model.init_args.lr_scheduler=null",
        "--trainer.logger.init_args.version=0",
        "--trainer.accelerator=cpu",
        f"--trainer.max_epochs={epochs}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        f"--trainer.devices={ranks}",
        *(["--trainer.strategy=ddp"] if ranks > 1 else []),
    ]


def forked(args: list[str], ranks: int, folder: Path) -> list[int]:
    """Ranks in one group of processes, as ``torchrun`` numbers them; their process numbers."""
    port, processes = free_port(), []
    for rank in range(ranks):
        process = os.fork()
        if process == 0:

            def child(rank: int = rank) -> None:
                os.setpgid(0, processes[0] if processes else 0)
                for stream, name in ((1, "out"), (2, "err")):
                    os.dup2(os.open(folder / f"{name}{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
                sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
                if ranks > 1:
                    os.environ.update(rank_environment(rank, ranks, port))
                os.chdir(folder)
                sys.argv = ["eigenscope", *args]
                signal.signal(signal.SIGINT, signal.default_int_handler)
                cli.script()

            run_and_exit(child)
        os.setpgid(process, processes[0] if processes else process)
        processes.append(process)
    return processes


def launched(args: list[str], launch: str, ranks: int, folder: Path) -> subprocess.Popen[bytes]:
    module = (
        ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if launch == "torchrun" else []
    )
    command = [sys.executable, "-W", "ignore", "-m", *module, "eigenscope", *args]
    with (folder / "err0").open("w") as err, (folder / "out0").open("w") as out:
        return subprocess.Popen(command, cwd=folder, stdout=out, stderr=err, start_new_session=True)


class Attempt:
    """A run in a group of processes of its own."""

    def __init__(self, args: list[str], launch: str, ranks: int, folder: Path) -> None:
        self.folder = folder
        for old in folder.glob("err*"):
            old.unlink()
        self.popen = None if launch == "fork" else launched(args, launch, ranks, folder)
        self.ranks = [self.popen.pid] if self.popen else forked(args, ranks, folder)

    def wait_for(self, file: Path, since: float) -> None:
        """Waits until a file has been written anew."""
        until = time.monotonic() + 100
        while time.monotonic() < until and not (file.exists() and file.stat().st_mtime > since):
            if os.waitid(os.P_PID, self.ranks[0], os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return  # it has ended by itself
            time.sleep(0.01)

    def kill(self, number: int) -> None:
        """Sends a signal to all processes of the group."""
        os.killpg(self.ranks[0], number)

    def wait(self, timeout: float = 120.0) -> list[int | None]:
        """The exit codes; None of a process that does not end."""
        until, codes = time.monotonic() + timeout, {}
        while len(codes) < len(self.ranks) and time.monotonic() < until:
            for rank in self.ranks:
                if rank not in codes:
                    pid, status = os.waitpid(rank, os.WNOHANG)
                    if pid:
                        codes[rank] = os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        if len(codes) < len(self.ranks):
            self.kill(signal.SIGKILL)
        return [codes.get(rank) for rank in self.ranks]

    def said(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("err*")))


def differences(whole: Path, stopped: Path) -> list[str]:
    """Names of weights, states of the optimizer and counts that are not equal to the bit."""
    a, b = read_checkpoint(whole), read_checkpoint(stopped)
    found = [name for name, weight in a["state_dict"].items() if not torch.equal(weight, b["state_dict"][name])]
    for key, state in a["optimizer_states"][0]["state"].items():
        other = b["optimizer_states"][0]["state"][key]
        found += [f"optimizer {key}.{name}" for name in state if not torch.equal(state[name], other[name])]
    return found + [name for name in ("loops", "global_step") if a[name] != b[name]]


def check(attempt: Attempt, codes: list[int | None], number: int, last: Path, launch: str) -> tuple[str, list[str]]:
    """What the stop left, and what is wrong with that."""
    if number == signal.SIGKILL:
        step = read_checkpoint(last)["global_step"] if last.exists() else 0
        return f"checkpoint of step {step}", [] if codes == [-number] * len(codes) else [f"exit codes {codes}"]
    said = attempt.said()
    sentence, at_once = SENTENCE.search(said), AT_ONCE.search(said)
    wrong = []
    expected = [1] if launch == "torchrun" else [128 + number] * len(codes)  # torchrun's own code is 1
    if codes != expected:
        wrong.append(f"exit codes {codes} where {expected} were expected")
    if launch != "torchrun" and "Traceback" in said:
        wrong.append("a traceback")
    if len(SENTENCE.findall(said) + AT_ONCE.findall(said)) != 1 or "memory" in said:
        wrong.append("not one sentence")
    if sentence is not None:
        outcome, step = RunMetadata.load(last.parents[1]).outcome, read_checkpoint(last)["global_step"]
        if outcome != "interrupted" or step != int(sentence[1]):
            wrong.append(f"outcome {outcome}, checkpoint of step {step}")
        return f"after step {step}", wrong
    if (last.parents[1] / "run.json").exists() and RunMetadata.load(last.parents[1]).outcome == "running":
        wrong.append("outcome running")
    return "at once" if at_once else "?", wrong


def stops(folder: Path, number: int, times: int, seed: int, ranks: int, launch: str, latest: float) -> int:
    """Runs all of it; the number of stops that were wrong, and 1 more if the end is another."""
    folder.mkdir(parents=True, exist_ok=True)
    moments, bad = random.Random(seed), 0
    last = folder / "runs" / "demo" / "version_0" / "checkpoints" / "last.ckpt"
    endless = arguments(folder, number, ranks, 100_000)
    for n in range(times):
        if not last.exists():  # stopped before there was anything to resume, after the folder was begun
            shutil.rmtree(last.parents[1], ignore_errors=True)
        attempt = Attempt([*endless, *(["--ckpt_path", str(last)] if last.exists() else [])], launch, ranks, folder)
        begun = time.time()
        if moments.random() < 0.8:  # from the first step on; the others are stopped while they start
            attempt.wait_for(last if number == signal.SIGKILL else last.parents[1] / "run.json", begun)
        moment = moments.uniform(0.0, latest)
        time.sleep(moment)
        sent = time.monotonic()
        attempt.kill(number)
        if n % 2:
            time.sleep(moments.uniform(0, 0.2))
            attempt.kill(number)  # twice in a row
        codes = attempt.wait()
        what, wrong = check(attempt, codes, number, last, launch)
        bad += bool(wrong)
        took = time.monotonic() - sent
        print(f"{n + 1:3d}. {moment:5.2f} s: {what}, {took:.1f} s later; {'; '.join(wrong) or 'right'}", flush=True)
        if wrong:
            print(attempt.said(), flush=True)
    if not last.exists():
        shutil.rmtree(last.parents[1], ignore_errors=True)
    step = read_checkpoint(last)["global_step"] if last.exists() else 0
    finite = arguments(folder, number, ranks, step // 10 + 1)
    whole = ["--trainer.logger.init_args.save_dir=whole"]
    for more in ([*(["--ckpt_path", str(last)] if last.exists() else [])], whole):
        codes = Attempt([*finite, *more], "fork", ranks, folder).wait(600)
        if any(codes):
            print(f"the last run ended with {codes}")
            return bad + 1
    found = differences(folder / "whole" / last.relative_to(folder / "runs"), last)
    name = signal.Signals(number).name
    print(
        f"{times} times {name}, {bad} wrong, last at step {step}; not equal to a run without: {found[:5] or 'nothing'}"
    )
    return bad + bool(found)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", nargs="+", default=["SIGTERM"], help="one study after another")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--launch", choices=("fork", "lightning", "torchrun"), default="fork")
    parser.add_argument("--latest", type=float, default=2.0, help="seconds after the start, or the first step")
    given = parser.parse_args()
    from eigenscope.cli import dispatch  # noqa: F401  once, for all forks

    torch.set_num_threads(1)
    bad = 0
    for name in given.signal:
        folder = given.folder.resolve() / name
        bad += stops(folder, signal.Signals[name], given.times, given.seed, given.ranks, given.launch, given.latest)
    sys.exit(min(bad, 1))


if __name__ == "__main__":
    main()
