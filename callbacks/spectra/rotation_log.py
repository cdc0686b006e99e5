"""Logs of eigenbasis rotation: scalars, verdicts, figures and CSV files."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eigenscope.callbacks.spectra.step_table import StepTable
from eigenscope.charts import Chart
from eigenscope.figures import angle_figure, eigenvalue_figure, overlap_figure
from eigenscope.optim.eigenbases.reference_snapshots import PRE_SPIKE
from eigenscope.optim.eigenbases.rotation import Verdict, verdict
from eigenscope.optim.eigenbases.snapshots import EigenbasisSnapshot, Side, compare_columns, compare_snapshots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RANKS = (1, 2, 5, 10)  # of the eigenvalues that are kept
_HISTORY = 2000  # measurements in the figures
_SPIKES = 100
_VERDICTS: tuple[Verdict, ...] = ("stable", "gauge", "diverged")
_COLUMNS = {
    "rotation": "step,parameter,side,reference,top1_deg,topk_deg,distance,change,shape_change,top,second,verdict",
    "spectrum": "step,parameter,side,rank,value",
    "replica": "step,parameter,side,relative_divergence,topk_deg",
}

Rows = dict[Any, deque[list[float]]]


class RotationLog:
    """Collects eigenbasis rotations as metrics, text, CSV files and figures; its state goes with a checkpoint.

    Args:
        k: of the top-k angle.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.measured: int | None = None  # step of the latest measurement
        self.spikes: deque[int] = deque(maxlen=_SPIKES)
        self._angles: Rows = {}  # (side, reference) to rows of step, top-1, top-k
        self._spectra: Rows = {}  # side to rows of step, eigenvalues
        self._counts: dict[tuple[str, str], Counter[str]] = {}  # (parameter, reference) to verdicts
        self._latest: dict[tuple[Side, str], tuple[str, str]] = {}  # to verdict and its figures in words
        self._overlaps: dict[Side, Tensor] = {}
        self._sizes: dict[Side, int] = {}
        self._overlap_reference = ""
        self._tables: dict[str, StepTable] = {}

    def open_files(self, folder: Path, step: int, with_replica: bool) -> None:
        """Appends to the CSV files of this folder, after their rows up to ``step``."""
        for name, columns in _COLUMNS.items():
            if name != "replica" or with_replica:
                self._tables[name] = StepTable(folder / f"{name}.csv", columns.split(","), step)

    def spike(self, step: int) -> None:
        """A spike begins with this step: the curves of references that it replaces break."""
        self.spikes.append(step)
        for (_, reference), rows in self._angles.items():
            if reference.endswith("_spike"):
                rows.append([step, torch.nan, torch.nan])

    def measure(
        self, now: EigenbasisSnapshot, references: Mapping[str, EigenbasisSnapshot], columns: bool
    ) -> dict[str, float]:
        """Compares a state with references, by name.

        Args:
            now: the state.
            references: the references there are.
            columns: also column by column, for the heat map, with ``pre_spike`` or else the oldest.

        Returns:
            Metrics by tag.
        """
        self.measured = now.step
        rotations = {name: compare_snapshots(now, reference, self.k) for name, reference in references.items()}
        if columns and references:
            shown = PRE_SPIKE if PRE_SPIKE in references else min(references, key=lambda f: references[f].step)
            self._overlaps = compare_columns(now, references[shown])
            self._overlap_reference = f"{shown}, step {references[shown].step}; now: step {now.step}"
        metrics, lines = {}, []
        spectra = {side: basis.values.cpu() for side, basis in now.bases.items()}
        for side, values in spectra.items():
            self._sizes[side] = len(values)
            chosen = values[[rank - 1 for rank in self._ranks(side)]].tolist()
            _rows(self._spectra, side).append([now.step, *chosen])
            if len(values) > 1:
                metrics[f"{_tag(side)}/gap"] = float(values[0] / values[1])
        for reference, sides in rotations.items():
            for side, rotation in sides.items():
                figures = {name: float(value) for name, value in rotation._asdict().items()}
                said = verdict(figures["topk_deg"], figures["shape_change"], figures["distance"])
                _rows(self._angles, (side, reference)).append([now.step, figures["top1_deg"], figures["topk_deg"]])
                self._counts.setdefault((side[0], reference), Counter())[said] += 1
                self._latest[side, reference] = (
                    said,
                    f"{figures['topk_deg']:.3g}° by top-{self.k}, shape of the factor changed by "
                    f"{figures['shape_change']:.2g}",
                )
                metrics |= {f"{_tag(side, reference)}/{name}": value for name, value in figures.items()}
                top, second = (*spectra[side][:2].tolist(), torch.nan)[:2]
                lines.append((now.step, *side, reference, *figures.values(), top, second, said))
        self._write("rotation", lines)
        self._write(
            "spectrum",
            [
                (now.step, *side, rank, value)
                for side in spectra
                for rank, value in zip(self._ranks(side), self._spectra[side][-1][1:], strict=True)
            ],
        )
        return metrics

    def measure_replica(self, now: EigenbasisSnapshot, replica: EigenbasisSnapshot) -> dict[str, float]:
        """Compares the replica's factors with the live ones; metrics by tag."""
        rotations = compare_snapshots(replica, now, self.k)
        figures = {side: (float(found.change), float(found.topk_deg)) for side, found in rotations.items()}
        self._write("replica", [(now.step, *side, *pair) for side, pair in figures.items()])
        return {
            f"{_tag(side)}/{name}": value
            for side, pair in figures.items()
            for name, value in zip(("replica_divergence", "replica_topk_deg"), pair, strict=True)
        }

    def charts(self) -> list[Chart]:
        """For each parameter the angles to each reference, and sizes; some may not have been measured."""
        wanted = []
        references = dict.fromkeys(reference for _, reference in self._angles)
        for name, sides in _by_parameter(self._spectra).items():
            curves = {
                f"angle of the top {self.k} to {reference} (degrees)": [
                    f"{_tag(side, reference)}/topk_deg" for side in sides
                ]
                for reference in references
            }
            curves["largest eigenvalue over the second"] = [f"{_tag(side)}/gap" for side in sides]
            curves["relative divergence of the replica"] = [f"{_tag(side)}/replica_divergence" for side in sides]
            wanted += [Chart("Eigenbases", f"{name}: {title}", tuple(tags)) for title, tags in curves.items()]
        return wanted

    def figures(self) -> dict[str, Figure]:
        """All that there is to draw, by tag."""
        found: dict[str, Figure] = {}
        for name, sides in _by_parameter(self._spectra).items():
            shape = f"{name}, " + " × ".join(str(self._sizes[side]) for side in sides)
            curves = {
                side: {reference: _tensor(rows) for (key, reference), rows in self._angles.items() if key == side}
                for side in sides
            }
            if any(curves.values()):
                found[f"rotation/{name}/angles"] = angle_figure(
                    _by_letter(curves), self.k, self.spikes, f"Rotation of the eigenbases of {shape}"
                )
            found[f"rotation/{name}/eigenvalues"] = eigenvalue_figure(
                _by_letter({side: _tensor(self._spectra[side]) for side in sides}),
                _by_letter({side: self._ranks(side) for side in sides}),
                self.spikes,
                f"Eigenvalues of the factors of {shape}",
            )
            overlaps = {side: self._overlaps[side] for side in sides if side in self._overlaps}
            if overlaps:
                found[f"rotation/{name}/overlap"] = overlap_figure(
                    _by_letter(overlaps),
                    {side[1]: self._sizes[side] for side in overlaps},
                    self._overlap_reference.partition(";")[0],
                    f"Eigenvectors of {shape}, against {self._overlap_reference}",
                )
        return found

    def card(self) -> str:
        """Verdicts counted for each parameter and reference, and the latest in words, as Markdown."""
        lines = [
            f"Verdicts to step {self.measured}",
            "",
            "| parameter | reference | stable | gauge | diverged | latest |",
        ]
        lines.append("|---|---|---|---|---|---|")
        for (name, reference), counts in self._counts.items():
            latest = "; ".join(
                f"{side}: **{said}**, {why}"
                for ((parameter, side), other), (said, why) in self._latest.items()
                if (parameter, other) == (name, reference)
            )
            lines.append(f"| {name} | {reference} | {' | '.join(str(counts[v]) for v in _VERDICTS)} | {latest} |")
        return "\n".join(lines)

    def summary(self) -> str:
        """The latest verdicts in one line."""
        references = dict.fromkeys(reference for _, reference in self._latest)
        parts = []
        for reference in references:
            said = Counter(found for (_, other), (found, _) in self._latest.items() if other == reference)
            parts.append(f"{reference} " + ", ".join(f"{said[v]} {v}" for v in _VERDICTS if said[v]))
        factors = len({side for side, _ in self._latest})
        verdicts = "; ".join(parts) or "no reference to compare with"
        return f"EigenbasisRotation, step {self.measured}, verdicts on {factors} factors: {verdicts}"

    def state_dict(self) -> dict[str, Any]:
        """Curves, counts and heat maps, as plain containers of tensors."""
        return {
            "measured": self.measured,
            "spikes": list(self.spikes),
            "angles": {key: _tensor(rows) for key, rows in self._angles.items()},
            "spectra": {key: _tensor(rows) for key, rows in self._spectra.items()},
            "counts": {key: dict(counts) for key, counts in self._counts.items()},
            "latest": dict(self._latest),
            "overlaps": dict(self._overlaps),
            "sizes": dict(self._sizes),
            "overlap_reference": self._overlap_reference,
        }

    def load_state_dict(self, state: Mapping[str, Any], tracked: Iterable[str]) -> None:
        """Restores the state, for the parameters that are still tracked."""
        names = set(tracked)
        self.measured, self._overlap_reference = state["measured"], state["overlap_reference"]
        self.spikes = deque(state["spikes"], maxlen=_SPIKES)
        for rows, saved in ((self._angles, state["angles"]), (self._spectra, state["spectra"])):
            for key, table in saved.items():
                side = key[0] if isinstance(key[0], tuple) else key
                if side[0] in names:
                    rows[key] = deque(table.tolist(), maxlen=_HISTORY)
        self._counts = {key: Counter(counts) for key, counts in state["counts"].items() if key[0] in names}
        self._latest = {key: said for key, said in state["latest"].items() if key[0][0] in names}
        self._overlaps = {side: overlap for side, overlap in state["overlaps"].items() if side[0] in names}
        self._sizes = {side: size for side, size in state["sizes"].items() if side[0] in names}

    def _ranks(self, side: Side) -> list[int]:
        return [rank for rank in _RANKS if rank <= self._sizes[side]]

    def _write(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        if table in self._tables:
            self._tables[table].append(rows)


def _tag(side: Side, reference: str | None = None) -> str:
    name = "/".join(("rotation", *side))
    return name if reference is None else f"{name}/{reference.replace(':', '_')}"  # TensorBoard takes no colon


def _rows(table: Rows, key: Any) -> deque[list[float]]:
    return table.setdefault(key, deque(maxlen=_HISTORY))


def _tensor(rows: Iterable[list[float]]) -> Tensor:
    return torch.tensor(list(rows), dtype=torch.float64)


def _by_parameter(sides: Iterable[Side]) -> dict[str, list[Side]]:
    found: dict[str, list[Side]] = {}
    for side in sides:
        found.setdefault(side[0], []).append(side)
    return found


def _by_letter(sides: Mapping[Side, Any]) -> dict[str, Any]:
    return {side[1]: value for side, value in sides.items()}
