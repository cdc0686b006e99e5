import os
import subprocess
import sys

import pytest

from eigenscope.command.lost_ranks import explain_lost_rank

PARENT = """
import os, subprocess, sys
options = {"stdout": subprocess.PIPE, "env": os.environ | {"LOCAL_RANK": "1"}}
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], **options)
child.stdout.readline()
if sys.argv[2:]:
    child.wait()
"""
CHILD = """
import sys, time
from eigenscope.command.lost_ranks import end_with_launcher
end_with_launcher(grace=0.1)
print("watching", flush=True)
time.sleep({seconds})
print("at its own end", file=sys.stderr)
"""


@pytest.mark.parametrize(
    "message",
    [
        "[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:18312",
        "NCCL error: remote process exited or there was a network error",
    ],
)
def test_the_loss_of_another_rank_is_a_sentence(message, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert explain_lost_rank(RuntimeError(message)).startswith("rank 3 ends because it lost another rank")


def test_another_error_is_not():
    assert explain_lost_rank(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert explain_lost_rank(ValueError("gloo/transport")) is None


def printed(seconds, *waits):
    """What a rank prints that works for so long, of a launcher that waits for it or is gone at once."""
    command = [sys.executable, "-c", PARENT, CHILD.format(seconds=seconds), *waits]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
    return done.stderr  # read until the child, too, has closed it


def test_a_rank_ends_with_its_launcher():
    assert printed(600) == "error: rank 1 ends because the process that launched it is gone\n"
    assert printed(1.5, "waits") == "at its own end\n"
