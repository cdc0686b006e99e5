"""The table and the board survive Lightning's progress bars, on a terminal as in a file."""

import os
import pty
import re
from pathlib import Path

import pytest

from tests import forks

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
ARGUMENTS = [
    "--model.init_args.net.init_args.width=16",
    "--model.init_args.net.init_args.num_heads=2",
    "--data.init_args.train_size=200",
    "--data.init_args.test_size=100",
    "--data.init_args.batch_size=50",
    "--data.init_args.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=4",
    "--trainer.log_every_n_steps=1",
]


def run(folder, terminal):
    command, variables = ["eigenscope", "fit", "--config", str(DEMO), *ARGUMENTS], {"TERM": "xterm", "COLUMNS": "130"}
    if not terminal:
        assert forks.wait([forks.start(command, folder, folder / "printed", variables)], 100) == [0]
        return (folder / "printed").read_text()
    ours, theirs = pty.openpty()
    process = forks.start(command, folder, theirs, variables)
    os.close(theirs)
    printed = b""
    try:
        while chunk := os.read(ours, 65536):
            printed += chunk
    except OSError:  # the end of a pseudo-terminal
        pass
    assert forks.wait([process], 100) == [0]
    return printed.decode()


def on_screen(printed):
    """What is left to see: the lines that no later cursor movement erased."""
    lines, row = [""], 0
    for token in re.findall(r"\x1b\[\??[0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", printed):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token.endswith("A") and token.startswith("\x1b"):
            row = max(0, row - int(token[2:-1] or 1))
        elif token == "\x1b[2K":
            lines[row] = ""
        elif token[0] not in "\x1b\r":
            lines[row] += token
    return lines


@pytest.mark.parametrize("terminal", [True, False])
def test_every_epoch_is_left_to_read(tmp_path, terminal):
    lines = on_screen(run(tmp_path, terminal))
    rows = [line.split()[0] for line in lines if re.fullmatch(r" +\d( +[-+.:\d]+){8}", line.rstrip())]
    assert rows == ["1", "2", "3", "4"]
    assert any(line.split()[:2] == ["experiment", "seed"] for line in lines)
