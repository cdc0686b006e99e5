"""Tables of the gradient-spike study: measured values beside the reported ones.

Runs are named as their experiments, ``spike_soap_high`` and so on; steps count from 1, so the state of step 50 is that
after 50 steps. Tables are Markdown, with columns aligned for a terminal.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from spike_response import SpikeResponse

from eigenscope.text import markdown_table

Angles = Mapping[tuple[int, str], tuple[float, float]]
"""(top-1, top-k) angle of Q_L in degrees, by step and reference."""
Spectrum = Mapping[int, Mapping[int, float]]
"""Eigenvalue of L by step and rank from 1."""

SPIKE_STEP = 51
DISTANCES = (1, 2, 5, 10)
SPECTRUM_STEPS = (46, 50, 51, 52, 55, 60, 70)
RANKS = (1, 2, 5, 10)

# reported, with the pre-spike reference: (before, after) for each distance, on a GPU
GPU_ANGLES = {
    "spike_soap_high": (
        ("0.000/0.028", "0.000/0.059", "0.028/0.044", "0.020/0.028"),
        ("0.020/0.028", "88.491/87.201", "86.837/89.978", "88.965/89.504"),
    ),
    "spike_soap_highest": (("≤ 0.034/0.048",) * 4, ("≤ 0.028/0.044",) * 4),
    "spike_rekls_high": (("0/0",) * 4, ("0/0", "86.186/89.767", "85.919/89.759", "85.784/89.647")),
    "spike_rekls_highest": (("0/0",) * 4, ("0/0",) * 4),
}
# reported, the same after the spike, on a CPU that emulates TF32
EMULATED_ANGLES = {
    "spike_soap_high": ("0.020/0.059", "45.4/88.5", "73.1/89.8", "89.2/89.4"),
    "spike_rekls_high": ("0.000/0.044", "84.5/89.9", "88.7/89.2", "82.1/89.7"),
    "spike_rekls_highest": ("≤ 0.06",) * 4,
}
# reported eigenvalues of L by step and rank, on a GPU; of some steps only the top and its ratio to the second
GPU_SPECTRUM: dict[str, dict[int, dict[int, float]]] = {
    "spike_rekls_high": {
        46: {1: 3.030e6, 2: 2.921e6, 5: 2.472e6, 10: 2.036e6},
        50: {1: 2.421e6},
        51: {1: 2.291e6, 2: 2.208e6, 5: 1.869e6, 10: 1.539e6},
        52: {1: 1.539e7, 2: 1.348e7, 5: 1.061e7, 10: 1.961e6},
        55: {1: 2.293e7},
        60: {1: 2.529e7},
        70: {1: 3.074e7},
    }
}
GPU_RATIOS = {"spike_rekls_high": {46: 1.0374, 50: 1.0374, 51: 1.0374, 52: 1.1417, 55: 1.1491, 60: 1.0220, 70: 1.0655}}
# reported top eigenvalues, on a CPU that emulates TF32
EMULATED_TOP = {
    "spike_rekls_high": {51: 2.31e6, 52: 1.97e7, 70: 5.0e7},
    "spike_rekls_highest": {51: 2.31e6, 52: 2.19e6, 70: 8.3e5},
}


def read_angles(folder: Path) -> dict[tuple[int, str], tuple[float, float]]:
    """What a run's ``rotation.csv`` says of Q_L, see :data:`Angles`."""
    rows = _rows(folder / "rotation.csv")
    return {(int(row["step"]), row["reference"]): (float(row["top1_deg"]), float(row["topk_deg"])) for row in rows}


def read_spectrum(folder: Path) -> dict[int, dict[int, float]]:
    """What a run's ``spectrum.csv`` says of L, see :data:`Spectrum`."""
    spectrum: dict[int, dict[int, float]] = {}
    for row in _rows(folder / "spectrum.csv"):
        spectrum.setdefault(int(row["step"]), {})[int(row["rank"])] = float(row["value"])
    return spectrum


def angle_table(runs: Mapping[str, Angles], reference: Literal["pre_spike", "post_spike"]) -> str:
    """Angles of Q_L to a reference N steps before and after it; beside the pre-spike reference those reported."""
    header = ["run", "N", "before", "after"]
    pre = reference == "pre_spike"
    if pre:
        header += ["before, GPU", "after, GPU", "after, emulated"]
    at = SPIKE_STEP - pre
    rows = []
    for name, angles in runs.items():
        before, after = GPU_ANGLES.get(name, (("",) * 4,) * 2)
        emulated = EMULATED_ANGLES.get(name, ("",) * 4)
        for i, distance in enumerate(DISTANCES):
            measured = (angles.get((at, f"lag:{distance}")), angles.get((at + distance, reference)))
            cells = [name, str(distance), *(f"{a[0]:.3f}/{a[1]:.3f}" if a else "-" for a in measured)]
            rows.append(cells + ([before[i], after[i], emulated[i]] if pre else []))
    return markdown_table(header, rows)


def spectrum_table(name: str, spectrum: Spectrum) -> str:
    """Eigenvalues of L around the spike, each beside the one reported on a GPU if there are any."""
    headings = {1: "top", 2: "2nd", 5: "5th", 10: "10th"}
    reported, ratios = GPU_SPECTRUM.get(name), GPU_RATIOS.get(name, {})
    beside = [] if reported is None else ["GPU"]
    header = ["step", *(cell for rank in RANKS for cell in (headings[rank], *beside)), "top/2nd", *beside]
    rows = []
    for step in SPECTRUM_STEPS:
        values = spectrum.get(step, {})
        cells = [str(step)]
        for rank in RANKS:
            cells.append(_number(values.get(rank)))
            if reported is not None:
                cells.append(_number(reported[step].get(rank)))
        cells.append(_ratio(values[1] / values[2] if {1, 2} <= values.keys() else None))
        if reported is not None:
            cells.append(_ratio(ratios.get(step)))
        rows.append(cells)
    return markdown_table(header, rows)


def growth_table(runs: Mapping[str, Spectrum]) -> str:
    """L's top eigenvalue before and after the step that follows the spike, and later, beside those reported."""
    steps = (SPIKE_STEP, SPIKE_STEP + 1, 70)
    header = ["run", *(cell for step in steps for cell in (f"step {step}", "emulated", "GPU"))]
    header += [f"{steps[1]} over {steps[0]}"]
    rows = []
    for name, spectrum in runs.items():
        top = {step: spectrum.get(step, {}).get(1) for step in steps}
        cells = [name]
        for step in steps:
            gpu = GPU_SPECTRUM.get(name, {}).get(step, {}).get(1)
            cells += [_number(top[step]), _number(EMULATED_TOP.get(name, {}).get(step)), _number(gpu)]
        first, second = top[steps[0]], top[steps[1]]
        rows.append([*cells, _ratio(second / first if first and second else None)])
    return markdown_table(header, rows)


def response_table(responses: Sequence[tuple[str, int, float, SpikeResponse]]) -> str:
    """One row for each (optimizer, steps before the spike, scale, response)."""
    header = ["optimizer", "spike at", "scale", "before", "at spike", "extreme", "after", "size back", "direction back"]
    rows = []
    for name, step, scale, response in responses:
        sizes = (response.before, response.at_spike, response.extreme)
        back = (response.size_recovery, response.direction_recovery)
        cells = [name, str(step), f"{scale:.0e}".replace("e+0", "e"), *(f"{size:.3g}" for size in sizes)]
        cells += [f"+{response.extreme_after}", *("none within the run" if n is None else f"+{n}" for n in back)]
        rows.append(cells)
    return markdown_table(header, rows)


def _rows(path: Path) -> list[dict[str, str]]:
    """Those of the left factor of the run's one parameter."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["side"] == "L"]
    parameters = {row["parameter"] for row in rows}
    if len(parameters) != 1:
        raise ValueError(f"{path} must be of one parameter, got {sorted(parameters)}")
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3e}".replace("e+0", "e")


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
