"""Reports of KV-cache compression: scalars, a table, a text card and figures."""

from __future__ import annotations

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


_CHARTS = {
    "bits_keys": "bits per element of keys",
    "error_keys": "relative error of keys",
    "bits_values": "bits per element of values",
    "error_values": "relative error of values",
    "ratio": "compression ratio (bytes before / bytes stored)",
    "top1_agreement": "top-1 agreement of predictions",
    "accuracy_difference": "accuracy, decoded minus exact",
}


def charts(codecs: Sequence[str]) -> list[Chart]:
    """Charts of the metrics over all layers, a curve for each codec, some of which may not have been measured."""
    return [
        Chart("Keys and values: rate and distortion", title, tuple(f"kv/{codec}/{name}" for codec in codecs))
        for name, title in _CHARTS.items()
    ]


def printed(sums: KVMetricSums, dtype: torch.dtype | None) -> str:
    """The table of metrics over all layers as text, a row per codec."""
    return f"{text_table(*_table(sums))}\n{_legend(sums, dtype)}"


def card(sums: KVMetricSums, dtype: torch.dtype | None, title: str) -> str:
    """The table of metrics as Markdown."""
    header, rows = _table(sums)
    lines = [f"**{title}**", "", *(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))]
    return "\n".join([*lines, "", _legend(sums, dtype)])


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
    rows = [
        [
            codec,
            *(
                f"{float(measures[name][number]):{form}}" if present[name][number] else "–"
                for name, (_, form) in shown.items()
            ),
        ]
        for number, codec in enumerate(sums.codecs)
    ]
    return ["codec", *(heading for heading, _ in shown.values())], rows


def _legend(sums: KVMetricSums, dtype: torch.dtype | None) -> str:
    predictions = int(sums.network[:, -1].max()) if len(sums.codecs) else 0
    measured = f", {predictions:,} predictions" if predictions else ""
    uncompressed = "as it is" if dtype is None else f"in {str(dtype).removeprefix('torch.')}"
    return (
        f"× = bytes of keys and values {uncompressed} / bytes stored; errors are relative, bound: the least of any "
        f"code of Gaussian tokens\nat these bits; scores: RMSE; KL in nats; accuracy: difference to exact{measured}"
    )
