"""Commands started as people start them, in a fork of this process, which has imported everything already.

What a command launches itself, such as Lightning its second rank and ``torchrun`` its ranks, is a new interpreter.
"""

import importlib.util
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from torch.distributed import run as torchrun

from eigenscope import cli

ROOT = Path(__file__).resolve().parents[1]


def start(command: Sequence[str], folder: Path, printed: Path | int, variables: Mapping[str, str]) -> int:
    """``python -m COMMAND`` for ``eigenscope`` and ``torch.distributed.run``: the process, which leads a session.

    ``printed`` is the file that it prints to, or a terminal.
    """
    module, *args = command
    process = os.fork()
    if process:
        return process

    def child() -> None:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        warnings.simplefilter("ignore")
        if isinstance(printed, Path):
            output = os.open(printed, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        else:
            output = os.dup2(printed, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
        for logger in logging.root.manager.loggerDict.values():
            for handler in getattr(logger, "handlers", ()):
                if type(handler) is logging.StreamHandler:
                    handler.setStream(sys.stderr)
        os.environ.update({"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": f"{ROOT}:{folder}"})
        os.environ.update(variables)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        sys.argv = [module, *args]
        sys.modules["__main__"].__spec__ = importlib.util.find_spec("eigenscope.__main__")  # which Lightning launches
        run: Callable[[], object] = cli.script if module == "eigenscope" else torchrun.main
        run()

    run_and_exit(child)


def run_and_exit(child: Callable[[], object]) -> NoReturn:
    """Runs a function in a process that was forked, and ends the process as the interpreter would."""
    code = 1
    try:
        child()
        code = 0
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(processes: Sequence[int], timeout: float) -> list[int | None]:
    """The exit codes; the group of a process that does not end in time is killed, and its code is None."""
    codes: dict[int, int | None] = {}
    until = time.monotonic() + timeout
    while len(codes) < len(processes):
        for process in processes:
            if process in codes:
                continue
            late = time.monotonic() > until
            if late:
                os.killpg(process, signal.SIGKILL)
            pid, status = os.waitpid(process, 0 if late else os.WNOHANG)
            if pid:
                codes[process] = None if late else os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return [codes[process] for process in processes]
