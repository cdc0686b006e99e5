"""Names of TensorBoard, and of torch's writer for it, that their documentation does not promise."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eigenscope.adapters import Library, MissingNameError, report_fallback

_TENSORBOARD, _TORCH = Library("tensorboard"), Library("torch")


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


def write_hparams(writer: Any, row: Mapping[str, Any], metrics: Mapping[str, float], first: Collection[str]) -> None:
    """Writes a row of the HPARAMS page into the run's own folder, by torch's ``SummaryWriter``.

    Nothing, and a note on stderr, where a name is gone. Unlike the writer's ``add_hparams`` this opens no other run,
    and unlike Lightning's logger it repeats no metric as a scalar.

    Args:
        writer: a ``SummaryWriter``.
        row: the columns.
        metrics: by their tags.
        first: columns that are seen without a click: TensorBoard shows five, those that differ before the others.
    """
    try:
        hparams = _TORCH.get("torch.utils.tensorboard.summary", "hparams")
        data = _TENSORBOARD.get("tensorboard.plugins.hparams.plugin_data_pb2", "HParamsPluginData")
        file = _TORCH.get(writer, "file_writer")
    except MissingNameError as missing:
        report_fallback("the run has no row on TensorBoard's HPARAMS page", missing)
        return
    columns, start, end = hparams(dict(row), dict(metrics))
    plugin = columns.value[0].metadata.plugin_data
    content = data.FromString(plugin.content)
    for column in content.experiment.hparam_infos:
        column.differs = column.name in first
    plugin.content = content.SerializeToString()
    for summary in (columns, start, end):
        file.add_summary(summary)
