"""The environment of a run: versions, commit, hardware, memory; warnings for runs whose environments differ."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "eigenscope",
    "torch",
    "lightning",
    "torchvision",
    "torchmetrics",
    "emerging-optimizers",
    "jsonargparse",
    "numpy",
)


def versions() -> dict[str, str | None]:
    """Versions of Python, of :data:`PACKAGES`, of CUDA and cuDNN; None for what is not there."""
    cudnn: int | None = torch.backends.cudnn.version() if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
    }


def code_state(folders: Iterable[Path], timeout: float = 2.0) -> dict[str, Any]:
    """The commit of the first of these folders that is in a git repository, and whether its tree is clean.

    Args:
        folders: tried in turn.
        timeout: seconds for each question to git; a question that takes longer is one without an answer.

    Returns:
        ``repository``, ``commit`` and ``clean``; all None without git or a repository. A tree with files that are
        neither committed nor ignored is not clean.
    """
    for folder in folders:
        found = _git(folder, timeout, "rev-parse", "--show-toplevel", "HEAD")
        if found is not None:
            repository, commit = found.splitlines()
            changes = _git(folder, timeout, "status", "--porcelain")
            return {"repository": repository, "commit": commit, "clean": None if changes is None else not changes}
    return {"repository": None, "commit": None, "clean": None}


def hardware() -> dict[str, Any]:
    """The CPU's model, the cores that this process may use, the machine's memory in bytes, and the GPUs it sees."""
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _memory(),
        "gpus": [{"name": gpu.name, "memory": gpu.total_memory} for gpu in gpus],
    }


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most bytes held at once since the process began: allocated by torch on a GPU, or resident on a CPU.

    Returns:
        The metric under the device's name; nothing where the system does not say.
    """
    if device.type == "cuda":
        return {str(device): torch.cuda.max_memory_allocated(device)}
    try:
        import resource
    except ImportError:  # not on Windows
        return {}
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {device.type: largest if sys.platform == "darwin" else 1024 * largest}


def _version(package: str) -> str | None:
    if package == "torch":
        return str(torch.__version__)  # with the build, which the installed package's version leaves out
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path, timeout: float, *question: str) -> str | None:
    command = ["git", "-C", str(folder), *question]
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # a look must not get in the way of somebody's commit
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=quiet)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def unlike_runs(cards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Warnings for runs with different commit, torch, hardware or data: a sentence for each.

    Args:
        cards: of the runs, by their names, as :class:`eigenscope.callbacks.RunMetadataCallback` writes them; an empty
        one says nothing.
    """
    known = {run: _aspects(card) for run, card in cards.items() if card}
    sentences = []
    for aspect in next(iter(known.values()), {}):
        runs: dict[str, list[str]] = {}
        for run, aspects in known.items():
            runs.setdefault(aspects[aspect], []).append(run)
        if len(runs) > 1:
            told = "; ".join(f"{value} ({', '.join(names)})" for value, names in runs.items())
            sentences.append(f"Warning: these runs were not made with the same {aspect}: {told}")
    return sentences


def _aspects(card: Mapping[str, Any]) -> dict[str, str]:
    machine, data = card["hardware"], card["data"]
    return {
        "commit": str(card["code"]["commit"] or "unknown")[:12],
        "torch": str(card["versions"]["torch"]),
        "hardware": " + ".join([machine["cpu"], *(gpu["name"] for gpu in machine["gpus"])]),
        "data": ", ".join(f"{name} {content}" for name, content in sorted(data.items())),
    }
