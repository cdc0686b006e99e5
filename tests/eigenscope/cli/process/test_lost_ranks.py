import os
import subprocess
import sys

import pytest

from eigenscope.cli.process.lost_ranks import explain_lost_rank

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
from eigenscope.cli.process.lost_ranks import end_with_launcher
end_with_launcher(grace=0.1)
print("watching", flush=True)
time.sleep({seconds})
print("at its own end", file=sys.stderr)
"""
UNREAD = """
import os, time
from eigenscope.cli.process.lost_ranks import end_with_launcher
read, write = os.pipe()
if os.fork():  # the launcher
    os.read(read, 1)
    os._exit(0)
end_with_launcher(grace=0.1)
print("watching", flush=True)
os.write(write, b".")
time.sleep(10)
print("at its own end", flush=True)
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
    sentence = explain_lost_rank(RuntimeError(f"{message}\nand more"))
    assert sentence.startswith(f"rank 3 ends because it lost another rank ({message}); that one's own message")


@pytest.mark.parametrize(
    "message",
    [
        "Gloo connectFullMesh failed with [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:144] no error",
        "[enforce fail at /gloo/transport/tcp/device.cc:84] ifa != nullptr. Unable to find address for: eth9",
        "[/gloo/transport/tcp/pair.cc:599] connect [10.0.0.7]:4099: Connection refused",
    ],
)
def test_a_rank_that_was_never_connected_lost_nobody(message, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    sentence = explain_lost_rank(RuntimeError(message))
    assert sentence.startswith(f"rank 3 could not connect to the other ranks ({message}): ")
    assert "lost" not in sentence


def test_a_long_error_is_cut():
    sentence = explain_lost_rank(RuntimeError("gloo/transport " + "word " * 1000))
    assert sentence.startswith("rank 0 ends because it lost another rank (gloo/transport word ")
    assert len(sentence) < 500


def test_another_error_is_not():
    assert explain_lost_rank(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert explain_lost_rank(ValueError("gloo/transport")) is None


def test_a_rank_ends_with_its_launcher_also_if_nobody_reads_what_it_says():
    read, write = os.pipe()
    os.close(read)
    environment = os.environ | {"LOCAL_RANK": "1"}
    try:  # which returns when the rank, too, has closed stdout
        done = subprocess.run(
            [sys.executable, "-c", UNREAD], stdout=subprocess.PIPE, stderr=write, env=environment, timeout=120
        )
    finally:
        os.close(write)
    assert done.stdout == b"watching\n"


def printed(seconds, *waits):
    """What a rank prints that works for so long, of a launcher that waits for it or is gone at once."""
    command = [sys.executable, "-c", PARENT, CHILD.format(seconds=seconds), *waits]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
    return done.stderr  # read until the child, too, has closed it


def test_a_rank_ends_with_its_launcher():
    assert printed(600) == "error: rank 1 ends because the process that launched it is gone\n"
    assert printed(1.5, "waits") == "at its own end\n"
