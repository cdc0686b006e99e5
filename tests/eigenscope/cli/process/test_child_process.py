import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eigenscope.cli.process.child_process import run_child

CHILD = """
import os, signal, time
from pathlib import Path
from eigenscope.cli.process.lost_ranks import end_with_launcher

def note(number, frame):
    with open("got", "a") as file:
        file.write(signal.Signals(number).name + "\\n")
    if number == signal.SIGTERM:
        os._exit(7)

end_with_launcher()
if {ready}:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    Path("ready").touch()
Path("written").write_text(str(os.getpid()))
Path("written").rename("pid")
while True:
    time.sleep(60)
"""
PARENT = """
import signal, sys
from pathlib import Path
from eigenscope.cli.process.child_process import run_child
if {ignores}:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
before = [signal.getsignal(number) for number in signal.Signals]
code, number = run_child([sys.executable, "-c", sys.argv[1]], Path("ready").exists)
print(code, number.name, before == [signal.getsignal(number) for number in signal.Signals])
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="states of processes are read from /proc")


def until(condition):
    """Waits for what takes a moment; the test's own time limit is the limit."""
    while not (found := condition()):
        time.sleep(0.01)
    return found


def read(path):
    return path.read_text() if path.exists() else ""


def state(process):
    return read(Path(f"/proc/{process}/stat")).rpartition(")")[2].split()[:1]


@contextlib.contextmanager
def launched(folder, ready=True, ignores=False):
    """A process that runs a child, in a group that a terminal would send signals to, and the child's number."""
    command = [sys.executable, "-c", PARENT.format(ignores=ignores), CHILD.format(ready=ready)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    parent = subprocess.Popen(command, start_new_session=True, **options)
    child = int(until(lambda: read(folder / "pid")))
    try:
        yield parent, child
    finally:
        for process in (child, parent.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        parent.communicate()


def test_a_signal_to_the_group_is_handed_on_once_and_each_further_one(tmp_path):
    with launched(tmp_path) as (parent, _):
        os.killpg(parent.pid, signal.SIGINT)
        until(lambda: read(tmp_path / "got"))
        os.kill(parent.pid, signal.SIGTERM)
        assert parent.communicate() == ("7 SIGINT True\n", "")
    assert read(tmp_path / "got").split() == ["SIGINT", "SIGTERM"]


def test_before_it_is_ready_a_child_ends_at_once_without_a_traceback(tmp_path):
    with launched(tmp_path, ready=False) as (parent, _):
        os.kill(parent.pid, signal.SIGINT)
        assert parent.communicate() == (f"{-signal.SIGTERM} SIGINT True\n", "")


def test_a_terminal_that_is_closed_is_a_request_to_end(tmp_path):
    with launched(tmp_path) as (parent, _):
        os.kill(parent.pid, signal.SIGHUP)
        assert parent.communicate() == ("7 SIGHUP True\n", "")
    assert read(tmp_path / "got").split() == ["SIGTERM"]


def test_a_signal_that_is_ignored_is_not_handed_on(tmp_path):
    with launched(tmp_path, ignores=True) as (parent, _):
        os.kill(parent.pid, signal.SIGHUP)
        os.kill(parent.pid, signal.SIGINT)
        until(lambda: read(tmp_path / "got"))
        os.kill(parent.pid, signal.SIGTERM)
        assert parent.communicate() == ("7 SIGINT True\n", "")
    assert read(tmp_path / "got").split() == ["SIGINT", "SIGTERM"]


def test_both_pause_and_continue(tmp_path):
    with launched(tmp_path) as (parent, child):
        os.kill(parent.pid, signal.SIGTSTP)
        until(lambda: state(parent.pid) == state(child) == ["T"])
        os.kill(parent.pid, signal.SIGCONT)
        until(lambda: state(parent.pid) != ["T"] and state(child) != ["T"])
        os.kill(parent.pid, signal.SIGTERM)
        assert parent.communicate() == ("7 SIGTERM True\n", "")


def test_a_child_ends_with_a_parent_that_is_killed(tmp_path):
    with launched(tmp_path) as (parent, child):
        os.kill(parent.pid, signal.SIGKILL)
        until(lambda: state(child) in ([], ["Z"]))
    assert read(tmp_path / "got").split() == ["SIGTERM"]


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_the_childs(code):
    assert run_child([sys.executable, "-c", f"raise SystemExit({code})"], lambda: True) == (code, None)
