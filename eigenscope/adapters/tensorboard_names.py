"""Names of TensorBoard, and of torch's writer for it, that their documentation does not promise."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eigenscope.adapters import Library, MissingNameError, report_fallback

_TENSORBOARD, _TORCH = Library("tensorboard"), Library("torch")
_NO_ROW = "the run has no row on TensorBoard's HPARAMS page"


def read_events(files: Iterable[Path]) -> Iterator[tuple[Any, bool]]:
    """The events of event files, as protocol buffers, and of each whether it says that a run begins anew.

    Nothing, and a note on stderr, where TensorBoard has no ``LegacyEventFileLoader``.
    """
    try:
        loader = _TENSORBOARD.get("tensorboard.backend.event_processing.event_file_loader", "LegacyEventFileLoader")
        start = _TENSORBOARD.get("tensorboard.compat.proto.event_pb2", "SessionLog").START
    except MissingNameError as missing:
        report_fallback("TensorBoard loses what the run logged about the step of its checkpoint", missing)
        return
    for file in files:
        for event in loader(str(file)).Load():
            yield event, event.session_log.status == start


def write_events(writer: Any, events: Iterable[Any]) -> None:
    """Writes events as they are, with their steps and times, by torch's ``SummaryWriter``."""
    try:
        file = _TORCH.get(writer, "file_writer")
    except MissingNameError as missing:
        report_fallback("TensorBoard loses what the run logged about the step of its checkpoint", missing)
        return
    for event in events:
        file.add_event(event, event.step, event.wall_time)


#: The event file of a run's row on the HPARAMS page, which TensorBoard reads after the run's others.
HPARAMS_FILE = "events.out.tfevents.hparams"

Cell = str | float | bool


@dataclass(frozen=True)
class HParamsRow:
    """A row of the HPARAMS page: columns, and the tags of the scalars that are its metrics."""

    columns: Mapping[str, Cell]
    metrics: Sequence[str]


def read_hparams(file: Path) -> HParamsRow | None:
    """The row that :func:`write_hparams` wrote; None if there is none, or, with a note on stderr, if a name is gone."""
    try:
        data = _TENSORBOARD.get("tensorboard.plugins.hparams.plugin_data_pb2", "HParamsPluginData")
    except MissingNameError as missing:
        report_fallback(_NO_ROW, missing)
        return None
    columns: dict[str, Cell] = {}
    metrics: list[str] = []
    for event, _ in read_events([file]):
        for value in event.summary.value:
            content = data.FromString(value.metadata.plugin_data.content)
            metrics += [info.name.tag for info in content.experiment.metric_infos]
            for name, cell in content.session_start_info.hparams.items():
                columns[name] = getattr(cell, cell.WhichOneof("kind"))
    return HParamsRow(columns, metrics) if columns else None


def write_hparams(file: Path, row: HParamsRow, columns: Mapping[str, tuple[type, bool]]) -> None:
    """Writes a row of the HPARAMS page as an event file of its own, whole or not at all.

    Nothing, and a note on stderr, where a name is gone. Unlike the ``add_hparams`` of torch's writer this opens no
    other run, and repeats no metric as a scalar.

    Args:
        file: named :data:`HPARAMS_FILE`, in the run's folder.
        row: of the run.
        columns: all that the page is to have, with their type, ``float``, ``bool`` or ``str``, and whether runs differ
            in it: TensorBoard shows five columns at first, those before the others.
    """
    try:
        hparams = _TORCH.get("torch.utils.tensorboard.summary", "hparams")
        data = _TENSORBOARD.get("tensorboard.plugins.hparams.plugin_data_pb2", "HParamsPluginData")
        api = _TENSORBOARD.get("tensorboard.plugins.hparams", "api_pb2")
        event = _TENSORBOARD.get("tensorboard.compat.proto.event_pb2", "Event")
        writer = _TENSORBOARD.get("tensorboard.summary.writer.record_writer", "RecordWriter")
    except MissingNameError as missing:
        report_fallback(_NO_ROW, missing)
        return
    types = {float: api.DATA_TYPE_FLOAT64, bool: api.DATA_TYPE_BOOL, str: api.DATA_TYPE_STRING}
    types = {float: api.DATA_TYPE_FLOAT64, bool: api.DATA_TYPE_BOOL, str: api.DATA_TYPE_STRING}
    summaries = hparams(dict(row.columns), dict.fromkeys(row.metrics, 0.0))  # of the metrics the tags alone are written
    plugin = summaries[0].value[0].metadata.plugin_data
    content = data.FromString(plugin.content)
    del content.experiment.hparam_infos[:]
    for name, (kind, differs) in columns.items():
        content.experiment.hparam_infos.add(name=name, type=types[kind], differs=differs)
    plugin.content = content.SerializeToString()
    aside = file.with_name(f".hparams.{os.getpid()}.part")
    try:
        with aside.open("wb") as open_file:
            records, now = writer(open_file), time.time()
            for part in ({"file_version": "brain.Event:2"}, *({"summary": summary} for summary in summaries)):
                records.write(event(wall_time=now, **part).SerializeToString())
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)
