import os
import signal
import subprocess
import sys
import time

import pytest

from eigenscope.stop_signals import STOP_SIGNALS, is_first_rank, stop_signals

START = """
import ctypes, os, signal, sys, time
from eigenscope.stop_signals import StopRequested, stop_signals

stop_signals.listen()
"""
LISTENS = """
print("listens", flush=True)
"""
WAITS = f"{LISTENS}time.sleep(60)"
STUCK = f"""{LISTENS}
library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
library.pthread_mutex_lock(mutex)
library.pthread_mutex_lock(mutex)  # for ever, and Python's handlers with it: as in a collective of other ranks
"""
DEFERS = f"""
stop_signals.defer()
{LISTENS}
while stop_signals.received is None:
    time.sleep(0.01)
print(stop_signals.received.name, flush=True)
time.sleep({{seconds}})
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGINT)
print("goes on", flush=True)
stop_signals.end()
stop_signals.release()
stop_signals.close()
os.kill(os.getpid(), signal.SIGTERM)  # on the way out
"""
FORKS = f"""{LISTENS}
child = os.fork()
if child == 0:
    time.sleep(60)
time.sleep(0.5)  # Python forgets the signals that a child has heard before it is ready
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
time.sleep(3.2)  # longer than one that does not hear a signal is waited for
"""


def run(code, *numbers, after=0.0):
    """The exit code and what was printed of a process that is sent signals some seconds after it listens."""
    command, options = (
        [sys.executable, "-W", "ignore", "-c", START + code],
        {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
    )
    ranks = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # which other tests may have set in this process
    options["env"] = {name: value for name, value in os.environ.items() if name not in ranks}
    process = subprocess.Popen(command, text=True, **options)
    assert process.stdout.readline() == "listens\n"
    time.sleep(after)
    for number in numbers:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_an_exit_code(number):
    assert run(WAITS, number)[0] == 128 + number


def test_a_main_thread_that_cannot_hear_is_not_waited_for():
    said = "SIGTERM ended the run at once; no checkpoint was saved of that moment\n"
    assert run(STUCK, signal.SIGTERM, after=2.0) == (128 + signal.SIGTERM, "", said)


def test_what_is_deferred_is_noted_once():
    assert run(DEFERS.format(seconds=0), signal.SIGHUP) == (0, "SIGHUP\ngoes on\n", "")


def test_a_later_ctrl_c_insists():
    code, out, _ = run(DEFERS.format(seconds=1.1), signal.SIGTERM)
    assert (code, out) == (128 + signal.SIGINT, "SIGTERM\n")


def test_a_forked_child_is_not_the_run():
    assert run(FORKS) == (0, f"{-signal.SIGTERM}\n", "")


def test_handlers_are_handed_back_and_those_of_others_left_alone():
    def own(number, frame):
        pass

    before = [signal.signal(signal.SIGUSR1, own), signal.signal(signal.SIGHUP, signal.SIG_IGN)]
    try:
        handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        stop_signals.defer()
        assert [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGHUP)] == [own, signal.SIG_IGN]
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_signals.received == signal.SIGTERM
        stop_signals.release()
        assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == handlers
    finally:
        for number, handler in zip((signal.SIGUSR1, signal.SIGHUP), before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_the_first_rank_speaks(name, monkeypatch):
    assert is_first_rank()
    monkeypatch.setenv(name, "1")
    assert not is_first_rank()
