"""Two ranks started as people start them: by Lightning, as two nodes of torchrun, by SLURM."""

import runpy
from pathlib import Path

import pytest
import torch

from eigenscope import cli
from eigenscope.results import read_scoreboard
from tests import forks

ROOT = Path(__file__).parents[1]
free_port = runpy.run_path(str(Path(__file__).with_name("ddp_pool.py")))["free_port"]
TIMEOUT = 200
ARGUMENTS = [
    *("--config", str(ROOT / "configs" / "demo.yaml")),
    # Adam's first steps follow the sign of a gradient, even where that is rounding
    "--model.init_args.optimizer=torch.optim.SGD",
    "--model.init_args.optimizer.init_args.lr=0.1",
    "--model.init_args.lr_scheduler=null",
    "--model.init_args.net.init_args.width=16",
    "--model.init_args.net.init_args.depth=2",
    "--model.init_args.net.init_args.num_heads=2",
    "--model.init_args.net.init_args.dropout=0.0",
    "--data.init_args.train_size=200",
    "--data.init_args.test_size=101",
    "--data.init_args.batch_size=50",
    "--data.init_args.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
CLI = ["eigenscope", "fit", *ARGUMENTS, "--trainer.strategy=ddp"]


def torchrun(*options):
    return ["torch.distributed.run", *options, "-m", *CLI]


def by_lightning():
    return [([*CLI, "--trainer.devices=2"], {})]


def by_torchrun_on_two_nodes():
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", "tests"]
    node = torchrun("--nnodes", "2", "--nproc-per-node", "1", *meeting, "--local-addr", "localhost")
    return [([*node, "--trainer.num_nodes=2", "--trainer.devices=1"], {})] * 2


def by_slurm():
    """What ``srun`` sets for two tasks on one node of its own name."""
    job = {"SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2, "SLURM_NNODES": 1, "SLURM_NODEID": 0, "SLURM_JOB_ID": 4711}
    job |= {"SLURM_JOB_NAME": "eigenscope", "SLURM_NODELIST": "localhost", "MASTER_PORT": free_port()}
    tasks = [job | {"SLURM_PROCID": task, "SLURM_LOCALID": task} for task in range(2)]
    return [([*CLI, "--trainer.devices=2"], {name: str(value) for name, value in task.items()}) for task in tasks]


def run(commands, folder):
    folder.mkdir()
    files = [folder / f"printed{number}" for number in range(len(commands))]
    started = [
        forks.start(command, folder, file, variables)
        for (command, variables), file in zip(commands, files, strict=True)
    ]
    codes = forks.wait(started, TIMEOUT)
    said = [file.read_text() for file in files]
    assert codes == [0] * len(commands), "\n".join(said)
    return "".join(said)


def weights(folder):
    (path,) = folder.glob("runs/demo/version_*/checkpoints/last.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", *ARGUMENTS])
    return weights(folder)


@pytest.mark.parametrize("launch", [by_lightning, by_torchrun_on_two_nodes, by_slurm])
def test_two_ranks_equal_one_however_they_are_started(launch, one_process, tmp_path):
    printed = run(launch(), tmp_path / "two")
    assert "Starting with 2 processes" in printed
    assert printed.count("train acc %") == 1  # one table
    assert len(read_scoreboard(tmp_path / "two" / "runs" / "scoreboard.csv")) == 1
    two = weights(tmp_path / "two")
    for name, weight in one_process.items():
        torch.testing.assert_close(two[name], weight, atol=1e-5, rtol=1e-4)
