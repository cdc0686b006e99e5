import subprocess
import sys
import time
from itertools import pairwise

import pytest

from eigenscope.results import EpochResult, RunResult
from eigenscope.results.machine_load import MachineLoad, is_busy
from eigenscope.results.timing import timing_notes, unlike_scores

SPIN = "import time\nwhile time.process_time() < 0.4: pass\n"


def run(minute, **options):
    epochs = (EpochResult(1, {"val/acc": 0.5}, 2.0),)
    return RunResult("run", 0, 5, f"2026-01-01T10:{minute:02d}:00+00:00", "", epochs, **options)


def arms(*order):
    """Arms a and b whose runs ended in an order, such as "a0 b0 b1 a1"."""
    found = {"a": {}, "b": {}}
    for minute, (arm, seed) in enumerate(order):
        found[arm][int(seed)] = run(minute, others=0.0)
    return found


def test_when_seconds_were_taken():
    first, load = timing_notes(arms("a0", "b0", "b1", "a1"))
    assert first.endswith(
        "Runs ended between 2026-01-01 10:00 and 2026-01-01 10:03 UTC, in this order: a seed 0, b seed 0, b seed 1, "
        "a seed 1."
    )
    assert load.startswith("Other processes used at most 0.0 of ")
    for order in (("a0", "a1", "b0", "b1"), ("a0", "b0")):
        assert timing_notes(arms(*order))[1].startswith("The arms did not take turns")
    assert len(timing_notes({"a": {0: run(0, others=0.0), 1: run(1, others=0.5)}})) == 2


def test_a_busy_machine_is_said():
    notes = timing_notes({"a": {0: run(0, others=1.25, busy=True), 1: run(1)}})
    assert notes[1].startswith("Warning: other processes kept the machine busy during a seed 0 (1.2 cores): ")
    assert notes[2] == "The load of the machine is not known for a seed 1."
    assert timing_notes({"a": {0: run(0)}})[1] == "How busy other processes kept the machine is not known."


def test_scores_that_do_not_compare_are_said():
    runs = {"a": run(0, protocol="test"), "b": run(1, protocol="holdout"), "c": run(2, protocol="test")}
    (said,) = unlike_scores(runs)
    assert said == "Warning: these runs were not validated by the same protocol: test (a, c); holdout (b)"
    assert unlike_scores({"a": run(0), "b": run(1)}) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the load is read from /proc")
def test_the_load_is_that_of_others_alone():
    """A child that was waited for, and one that runs, are the run's own; one that left the family is not."""
    ticks = [MachineLoad._now()]
    subprocess.run([sys.executable, "-c", SPIN], check=True)
    ticks.append(MachineLoad._now())
    child = subprocess.Popen([sys.executable, "-c", f"{SPIN}input()"], stdin=subprocess.PIPE)
    time.sleep(0.1)
    while MachineLoad._now()[2] - ticks[-1][2] < 0.4:
        time.sleep(0.02)  # or the test's time-out ends it
    child.communicate(b"\n")
    ticks.append(MachineLoad._now())
    stranger = f"import os, sys\nif os.fork(): sys.exit()\nos.setsid()\n{SPIN}print('done', flush=True)"
    family = subprocess.run([sys.executable, "-c", stranger], stdout=subprocess.PIPE, check=True)
    assert family.stdout == b"done\n"
    ticks.append(MachineLoad._now())
    own = [after[2] - before[2] for before, after in pairwise(ticks)]
    machine = [after[1] - before[1] for before, after in pairwise(ticks)]
    assert min(machine) >= 0.35
    assert own[0] >= 0.35
    assert own[1] >= 0.35
    assert own[2] < 0.35


def test_no_load_is_told_before_it_was_measured():
    load = MachineLoad()
    assert load.others() is None
    load.start()
    assert load.others() is None
    assert not is_busy(None)
    assert not is_busy(0.0)
