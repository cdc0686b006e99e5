import json
from dataclasses import replace

import pytest

from eigenscope.results import EpochResult, MonitoredMetric, RunMetadata, RunResult, StoppedRun, update_record

RESULT = RunResult(
    "run",
    None,
    7,
    "2026-01-01T00:00:00+00:00",
    "runs/a",
    (EpochResult(1, {"train/mse": 0.5}, 1.5), EpochResult(2, {"val/mse": 0.25}, 2.5, restarts=True)),
    MonitoredMetric("val/mse", "min", percent=False),
    precision="bf16-mixed",
    optimizer="SOAP+AdamW",
    protocol="16 types",
    test={"test/mse": 0.125},
)
RECORD = RunMetadata(
    card={"start": {"time": "now", "step": 3}, "routing": {"SOAP": {"a.weight": "matrix"}}},
    outcome="interrupted",
    reason="KeyboardInterrupt",
    resumed=({"time": "then", "step": 0, "commit": None},),
    seconds=1.5,
    samples_per_second=100.25,
    peak_memory={"cuda:0": 12},
    result=RESULT,
    stopped=StoppedRun(3, "the loss"),
)


@pytest.mark.parametrize("record", [RECORD, RunMetadata(), replace(RECORD, result=None, stopped=None)])
def test_round_trip_passes_over_what_a_later_version_adds(tmp_path, record):
    folder = tmp_path / "new" / "folder"
    record.save(folder)
    assert RunMetadata.load(folder) == record
    content = json.loads((folder / "run.json").read_text())
    for part in (content, content["result"], content["stopped"]):
        if part is not None:
            part["added_later"] = 1
    (folder / "run.json").write_text(json.dumps(content))
    assert RunMetadata.load(folder) == record
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_fields_that_an_earlier_version_did_not_have_read_as_unset(tmp_path):
    (tmp_path / "run.json").write_text('{"outcome": "finished"}')
    assert RunMetadata.load(tmp_path) == RunMetadata(outcome="finished")


def test_an_update_replaces_some_fields(tmp_path):
    RECORD.save(tmp_path)
    updated = update_record(tmp_path, seconds=2.5, peak_memory={})
    assert updated == replace(RECORD, seconds=2.5, peak_memory={}) == RunMetadata.load(tmp_path)


def test_an_update_begins_a_record_where_there_is_none(tmp_path):
    assert update_record(tmp_path / "a", seconds=2.5) == RunMetadata(seconds=2.5)
    assert update_record(tmp_path / "b", result=RESULT) == RunMetadata(result=RESULT, outcome="finished")
    assert (tmp_path / "a" / "run.json").exists()


def test_what_is_added_tells_how_the_run_ended(tmp_path):
    stopped = StoppedRun(5, "the batch is not finite")
    assert update_record(tmp_path, stopped=stopped).outcome == "stopped"
    assert RunMetadata.load(tmp_path).reason == "the batch is not finite"
    finished = update_record(tmp_path, result=RESULT)
    assert (finished.outcome, finished.reason, finished.stopped) == ("finished", "", stopped)
    assert update_record(tmp_path, result=RESULT, outcome="interrupted").outcome == "interrupted"
    assert update_record(tmp_path, result=None, stopped=None).outcome == "interrupted"


def test_an_unknown_outcome_or_field_changes_nothing(tmp_path):
    RECORD.save(tmp_path)
    with pytest.raises(ValueError, match=r"outcome must be one of running, finished, .*, got 'fine'"):
        update_record(tmp_path, outcome="fine")
    with pytest.raises(TypeError, match="duration"):
        update_record(tmp_path, duration=3)
    assert RunMetadata.load(tmp_path) == RECORD


@pytest.mark.parametrize(
    "content", ["", "[]", '{"outcome": "fine"}', '{"result": {"name": "run"}}', '{"stopped": {"step": 3}}', '{"a": ']
)
def test_another_file_is_named_and_not_overwritten(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"^{path} is not run metadata: "):
        update_record(tmp_path, seconds=1.0)
    assert path.read_text() == content


def test_there_may_be_no_record(tmp_path):
    with pytest.raises(FileNotFoundError):
        RunMetadata.load(tmp_path)
