"""Processes that stay: ranks of one gloo group in which tests run functions, without a launch for each.

A function is named by its file and its name, takes plain values, and is called on all ranks at once. The ranks import
the command line once; the group stays as it is between calls, and is made anew after a call that failed or took too
long.
"""

import contextlib
import importlib.util
import inspect
import io
import os
import pickle
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NamedTuple

_GRACE = 15.0  # seconds that the others have to end a call after one has failed in it


class RankError(AssertionError):
    """A call failed on a rank; the message has every rank's traceback."""


class Outcome(NamedTuple):
    """What a rank returned and printed."""

    value: Any
    printed: str


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables that ``torchrun`` sets on one machine."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    numbers |= {"GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1, "TORCHELASTIC_RESTART_COUNT": 0, "OMP_NUM_THREADS": 1}
    return {name: str(number) for name, number in numbers.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_RUN_ID": "tests",
    }


class Pool:
    """Ranks that are started with the first call.

    Args:
        ranks: how many.
        timeout: seconds that a call may take.
    """

    def __init__(self, ranks: int = 2, timeout: float = 240.0) -> None:
        self.ranks = ranks
        self.timeout = timeout
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pipes: list[Connection[Any, Any]] = []

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float | None = None) -> list[Outcome]:
        """Calls a function of the top level of its file on all ranks, in this process's working directory.

        Returns:
            The outcome of every rank.

        Raises:
            RankError: it failed on a rank, or took too long.
        """
        if not self._processes:
            self._start()
        job = (inspect.getfile(function), function.__name__, arguments, os.getcwd())
        for pipe in self._pipes:
            pipe.send(job)
        outcomes: dict[int, Outcome] = {}
        failed: dict[int, str] = {}
        until = time.monotonic() + (self.timeout if timeout is None else timeout)
        while len(outcomes) + len(failed) < self.ranks:
            waiting = {self._pipes[r]: r for r in range(self.ranks) if r not in outcomes and r not in failed}
            ready = wait(list(waiting), timeout=max(0.0, until - time.monotonic()))
            if not ready:
                failed |= {r: "did not end in time" for r in waiting.values()}
            for pipe in ready:
                rank = waiting[pipe]
                try:
                    finished, value, printed = pickle.loads(pipe.recv_bytes())
                except (EOFError, OSError):
                    finished, value, printed = False, "the process ended", ""
                if finished:
                    outcomes[rank] = Outcome(value, printed)
                else:
                    failed[rank] = f"{value}\n{printed}"
                    until = min(until, time.monotonic() + _GRACE)
        if failed:
            self.close()
            raise RankError("\n".join(f"rank {rank}: {said}" for rank, said in sorted(failed.items())))
        return [outcomes[rank] for rank in range(self.ranks)]

    def _start(self) -> None:
        port = free_port()
        for rank in range(self.ranks):
            ours, theirs = Pipe()
            # -P: the folders of tests bear the names of the packages; the root, as pytest adds it: tests import tests
            command = [sys.executable, "-P", "-W", "ignore", __file__, str(theirs.fileno())]
            paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment = os.environ | rank_environment(rank, self.ranks, port) | {"PYTHONPATH": os.pathsep.join(paths)}
            self._processes.append(subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment))
            theirs.close()
            self._pipes.append(ours)

    def close(self) -> None:
        """Ends the ranks."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes, self._pipes = [], []


def _serve(pipe: "Connection[Any, Any]") -> None:
    import torch

    from eigenscope.cli import dispatch  # noqa: F401  # once, for all calls

    torch.set_num_threads(1)
    modules: dict[str, Any] = {}
    while True:
        try:
            file, name, arguments, folder = pipe.recv()
        except EOFError:
            return
        os.chdir(folder)
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                if file not in modules:
                    specification = importlib.util.spec_from_file_location(Path(file).stem, file)
                    modules[file] = importlib.util.module_from_spec(specification)
                    specification.loader.exec_module(modules[file])
                value = getattr(modules[file], name)(*arguments)
            answer = pickle.dumps((True, value, printed.getvalue()))
        except BaseException:  # SystemExit and KeyboardInterrupt are failures too
            answer = pickle.dumps((False, traceback.format_exc(), printed.getvalue()))
        pipe.send_bytes(answer)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
