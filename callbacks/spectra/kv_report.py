"""Reports of KV-cache compression: scalars, a table, a text card, a CSV file and figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from eigenscope.charts import Chart
from eigenscope.figures import layer_heat_maps, rate_distortion_figure
from eigenscope.kv.measuring.metric_sums import BOUND_BITS, KVMetricSums
from eigenscope.text import text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = {  # measure to its heading and format
    "ratio": ("×", ".2f"),
    "bits_keys": ("bits K", ".2f"),
    "bits_values": ("bits V", ".2f"),
    "error_keys": ("error K", ".3g"),
    "bound_keys": ("bound K", ".2g"),
    "error_values": ("error V", ".3g"),
    "bound_values": ("bound V", ".2g"),
    "score_rmse": ("scores", ".2g"),
    "attention_kl": ("attn. KL", ".2g"),
    "output_cosine": ("out. cos.", ".4f"),
    "top1_agreement": ("same top-1", ".1%"),
    "accuracy_difference": ("accuracy", "+.1%"),
    "logit_kl": ("logit KL", ".2g"),
}

TAGS = (  # measures over all layers that are logged
    "ratio",
    "bits_keys",
    "bits_values",
    "error_keys",
    "error_values",
    "attention_kl",
    "top1_agreement",
    "accuracy_difference",
    "logit_kl",
)
_CHARTS = {
    "bits_keys": "bits per element of keys",
    "error_keys": "relative error of keys",
    "bits_values": "bits per element of values",
    "error_values": "relative error of values",
    "ratio": "compression ratio (bytes in 16 bits / bytes stored)",
    "top1_agreement": "top-1 agreement of predictions",
    "accuracy_difference": "accuracy, decoded minus exact",
}


def charts(codecs: Sequence[str]) -> list[Chart]:
    """Charts of the metrics over all layers, a curve for each codec, some of which may not have been measured."""
    return [
        Chart("Keys and values: rate and distortion", title, tuple(f"kv/{codec}/{name}" for codec in codecs))
        for name, title in _CHARTS.items()
    ]


def printed(sums: KVMetricSums) -> str:
    """The table of metrics over all layers as text, a row per codec."""
    return f"{text_table(*_table(sums))}\n{_legend(sums)}"


def card(sums: KVMetricSums, title: str) -> str:
    """The table of metrics as Markdown."""
    header, rows = _table(sums)
    lines = [f"**{title}**", "", *(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))]
    return "\n".join([*lines, "", _legend(sums)])


def csv_lines(sums: KVMetricSums) -> str:
    """All measures as CSV: a row for each codec over all layers, and one for each codec and layer."""
    overall, by_layer = sums.overall(), sums.by_layer()
    rows = [["codec", "layer", *overall]]
    for number, codec in enumerate(sums.codecs):
        cells = {name: values[number] for name, values in overall.items() if sums.present(name, values)[number]}
        rows.append([codec, "all", *(_cell(cells.get(name)) for name in overall)])
        for place, layer in enumerate(sums.layers):
            cells = {name: table[number, place] for name, table in by_layer.items() if not table[number, place].isnan()}
            rows.append([codec, layer, *(_cell(cells.get(name)) for name in overall)])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def figures(sums: KVMetricSums) -> dict[str, Figure]:
    """The rate-distortion figure and the heat maps over layers, by tag."""
    measures = sums.by_layer()
    bits, errors = (
        torch.stack([measures[f"{what}_{x}"] for x in ("keys", "values")], -1) for what in ("bits", "error")
    )
    maps = {
        "relative error of keys": measures["error_keys"],
        "relative error of values": measures["error_values"],
        "attention KL (nats)": measures["attention_kl"],
    }
    return {
        "rate_distortion": rate_distortion_figure(
            sums.layers, sums.codecs, bits, errors, BOUND_BITS, sums.bound_curves()
        ),
        "layers": layer_heat_maps(sums.layers, sums.codecs, maps),
    }


def _table(sums: KVMetricSums) -> tuple[list[str], list[list[str]]]:
    measures = sums.overall()
    present = {name: sums.present(name, values) for name, values in measures.items()}
    shown = {name: column for name, column in _COLUMNS.items() if present[name].any()}
    rows = []
    for number, codec in enumerate(sums.codecs):
        cells = {
            name: f"{float(measures[name][number]):{form}}" if present[name][number] else "–"
            for name, (_, form) in shown.items()
        }
        if present["accuracy_low"][number]:
            low, high = (float(measures[f"accuracy_{end}"][number]) for end in ("low", "high"))
            cells["accuracy_difference"] += f" ({low:+.1%} … {high:+.1%})"
        rows.append([codec, *cells.values()])
    return ["codec", *(heading for heading, _ in shown.values())], rows


def _cell(value: torch.Tensor | None) -> str:
    return "" if value is None else repr(float(value))


def _legend(sums: KVMetricSums) -> str:
    predictions = int(sums.network[:, -1].max()) if len(sums.codecs) else 0
    measured = f", 95 % interval, {predictions:,} predictions" if predictions else ""
    return (
        f"× = bytes of keys and values in 16 bits / bytes stored; errors are relative, bound: the least of any code of "
        f"Gaussian tokens\nat these bits; scores: RMSE; KL in nats; accuracy: difference to exact{measured}"
    )
