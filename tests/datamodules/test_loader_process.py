import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLED = """
import multiprocessing, os, signal, sys
from torch.utils.data import DataLoader
from eigenscope.loader_processes import guard_loader_processes
from eigenscope.stop_signals import STOP_SIGNALS

def own_init(worker):
    assert worker in (0, 1)

if __name__ == "__main__":
    guard_loader_processes()
    context = None if sys.argv[1] == "fork" else sys.argv[1]
    options = {"multiprocessing_context": context, "worker_init_fn": own_init, "persistent_workers": True}
    loader = DataLoader(range(200), batch_size=10, num_workers=2, **options)
    batches = iter(loader)
    workers = [process.pid for process in multiprocessing.active_children()]
    started = 0
    for batch in batches:
        for number in STOP_SIGNALS:
            for pid in workers:  # the first time while they start, and a fork server has them too
                os.kill(pid, number)
        started += 1
    assert started == 20
    assert loader.worker_init_fn is own_init
    if sys.argv[2] == "ends":
        sys.exit(0)
    print(*workers, flush=True)
    iter(loader)
    os.kill(os.getpid(), signal.SIGKILL)
"""

UNSENT = """
import multiprocessing, os, time
from eigenscope import loader_processes

loader_processes.begin(None, 0)
queue = multiprocessing.Queue()
queue.put(lambda: None)  # which cannot be sent
time.sleep(10)
os._exit(0)
"""


def test_a_batch_that_cannot_be_sent_ends_its_process_also_if_nobody_reads_why():
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([sys.executable, "-c", UNSENT], stderr=write, timeout=120)
    finally:
        os.close(write)
    assert done.returncode == 1


def is_running(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_no_signal_ends_a_worker_and_none_outlives_a_killed_training(method, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    with (tmp_path / "pids").open("w") as pids:
        done = subprocess.run([sys.executable, script, method, "killed"], stdout=pids, timeout=120)
    assert done.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(workers) == 2
    try:
        deadline = time.monotonic() + 30
        while any(map(is_running, workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(is_running, workers))
    finally:
        for pid in filter(is_running, workers):
            os.kill(pid, signal.SIGKILL)


def test_a_training_that_ends_ends_its_workers_and_says_nothing(tmp_path):
    script = tmp_path / "ends.py"
    script.write_text(KILLED)
    done = subprocess.run([sys.executable, script, "fork", "ends"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
