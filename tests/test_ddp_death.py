"""One rank dies, and so does the run: at once, saying why, leaving nobody behind."""

import os
import runpy
import signal
import time
from pathlib import Path

import pytest

from tests import forks

ROOT = Path(__file__).parents[1]
POOL = runpy.run_path(str(Path(__file__).with_name("ddp_pool.py")))
TIMEOUT = 150  # for the slowest machine: ranks left alone wait for much longer
DYING = """
import os, signal, time
from pathlib import Path
import torch
from lightning.pytorch import Callback

class Dying(Callback):
    def __init__(self, rank: int, how: str, others: str):
        self.rank, self.how, self.others = rank, how, others

    def on_fit_start(self, trainer, pl_module):
        Path(f"process{trainer.global_rank}").write_text(str(os.getpid()))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step < 2:
            return
        if trainer.global_rank != self.rank:
            if self.others == "wait":  # as in a collective that nobody answers
                time.sleep(1000)
            return
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "eigensolver":
            torch.linalg.eigh(torch.full((3, 3), torch.nan))
"""
ARGUMENTS = [
    *("fit", "--config", str(ROOT / "configs" / "demo.yaml")),
    "--model.init_args.lr_scheduler=null",
    "--model.init_args.net.init_args.width=16",
    "--model.init_args.net.init_args.depth=2",
    "--model.init_args.net.init_args.num_heads=2",
    "--data.init_args.train_size=200",
    "--data.init_args.test_size=100",
    "--data.init_args.batch_size=20",
    "--data.init_args.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.strategy=ddp",
    "--trainer.devices=2",
]


def is_running(process):
    """Whether a process is there, and not merely unread of by its parent."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def run(folder, launcher, rank, how, others):
    """The exit code, what was printed and the ranks that are left."""
    (folder / "dying.py").write_text(DYING)
    callback = f"{{class_path: dying.Dying, init_args: {{rank: {rank}, how: {how}, others: {others}}}}}"
    arguments = [*ARGUMENTS, f"--trainer.callbacks+={callback}"]
    until = time.monotonic() + TIMEOUT
    if launcher == FORKED:  # with the variables of torchrun
        port, started = POOL["free_port"](), []
        for number in range(2):
            variables = POOL["rank_environment"](number, 2, port)
            started.append(forks.start(["eigenscope", *arguments], folder, folder / "printed", variables))
        code = forks.wait(started, TIMEOUT)[1 - rank]
    else:
        command = [*launcher, "eigenscope", *arguments]
        (code,) = forks.wait([forks.start(command, folder, folder / "printed", {})], TIMEOUT)
    ranks = [int(path.read_text()) for path in folder.glob("process*")]
    try:
        while any(map(is_running, ranks)) and time.monotonic() < until:
            time.sleep(0.1)
        left = [process for process in ranks if is_running(process)]
    finally:
        for process in filter(is_running, ranks):
            os.kill(process, signal.SIGKILL)
    assert len(ranks) == 2
    return code, (folder / "printed").read_text(), left


FORKED, LIGHTNING = None, []
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


@pytest.mark.parametrize(
    ("launcher", "rank", "how", "others", "said"),
    [
        (FORKED, 1, "eigensolver", "go on", ["error: linalg.eigh: The algorithm failed", "rank 0 ends because it"]),
        (FORKED, 1, "killed", "go on", ["rank 0 ends because it lost another rank"]),
        (LIGHTNING, 0, "killed", "wait", ["rank 1 ends because the process that launched it is gone"]),
        pytest.param(
            *(TORCHRUN, 1, "killed", "go on", ["rank 0 ends because it lost another rank", "Signal 9 (SIGKILL)"]),
            marks=pytest.mark.long,
        ),
    ],
    ids=["eigensolver", "killed", "main-killed", "torchrun-killed"],
)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="which processes are left is read from /proc")
def test_the_run_ends_with_the_rank(launcher, rank, how, others, said, tmp_path):
    code, printed, left = run(tmp_path, launcher, rank, how, others)
    assert code not in (0, None)
    assert not left
    for sentence in said:
        assert sentence in printed
