"""Runs command lines in forked processes of one that has everything imported, and says what came of each."""

import os
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from eigenscope import cli

_ERROR = "error: "


@dataclass(frozen=True)
class Outcome:
    """What came of a command line.

    Attributes:
        code: the exit status, as of a shell; None if it had to be stopped.
        output: what it printed, to both streams.
        seconds: how long it took.
    """

    code: int | None
    output: str
    seconds: float

    @property
    def sentence(self) -> str:
        """What stands after ``error: `` at the beginning of a line, once; nothing if there is no or more than one."""
        found = [line for line in self.output.splitlines() if line.startswith(_ERROR)]
        return found[0].removeprefix(_ERROR) if len(found) == 1 else ""

    @property
    def kind(self) -> str:
        """``ran``, ``refused`` in a sentence, ``traceback``, ``hung``, or ``silent``: failed without a word."""
        if self.code is None:
            return "hung"
        if "Traceback (most recent call last)" in self.output:
            return "traceback"
        if self.code == 0:
            return "ran"
        return "refused" if self.sentence else "silent"


def run(args: list[str], folder: Path, timeout: float = 60.0) -> Outcome:
    """Runs one command line as the installed command would, in a folder."""
    began = time.perf_counter()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(args, folder, writer)
    os.close(writer)
    output, ends = bytearray(), began + timeout
    code: int | None = None
    while (left := ends - time.perf_counter()) > 0:
        if not select.select([reader], [], [], left)[0]:
            break
        part = os.read(reader, 1 << 16)
        if not part:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            break
        output += part
    else:
        part = b""
    if code is None:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(reader)
    return Outcome(code, output.decode(errors="replace"), time.perf_counter() - began)


def _child(args: list[str], folder: Path, writer: int) -> None:
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.close(writer)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        sys.argv = ["eigenscope", *args]
        try:
            cli.script()
            code = 0
        except SystemExit as stop:  # as the interpreter has it
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
