import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLED = """
import multiprocessing, os, signal
from eigenscope.datamodules import SyntheticImagesDataModule

if __name__ == "__main__":
    multiprocessing.set_start_method({method!r})
    data = SyntheticImagesDataModule(train_size=100, test_size=1, batch_size=10, num_workers=2, protocol="test")
    data.setup("fit")
    batches = iter(data.train_dataloader())
    next(batches)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
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
def test_no_worker_outlives_a_killed_training(method, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(method=method))
    with (tmp_path / "pids").open("w") as pids:
        done = subprocess.run([sys.executable, script], stdout=pids, timeout=120)
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
