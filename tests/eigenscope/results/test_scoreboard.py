import json
import multiprocessing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eigenscope.results import (
    EpochResult,
    MonitoredMetric,
    RunResult,
    add_to_scoreboard,
    read_scoreboard,
    scoreboard_table,
)
from eigenscope.results.run_result import run_title
from eigenscope.results.scoreboard import COLUMNS
from eigenscope.text import duration


def result(name, value, seed=0, log_dir="", score=MonitoredMetric(), **options):  # noqa: B008
    rows = (EpochResult(1, {score.name: value}, 2.0),)
    return RunResult(name, seed, 1234567, "2026-01-01T00:00:00+00:00", log_dir, rows, score, **options)


def add(path, number):
    add_to_scoreboard(path, result(f"run{number}", number / 100))


def test_best_first(tmp_path):
    path = tmp_path / "runs" / "scoreboard.csv"
    for name, accuracy in (("low, with comma", 0.1), ("high", 0.9), ("middle", 0.5)):
        add_to_scoreboard(path, result(name, accuracy, seed=None))
    lines = scoreboard_table(read_scoreboard(path)).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["high", "middle", "low,"]
    assert "90.00" in lines[2]
    assert "1,234,567" in lines[2]
    assert len({len(line) for line in lines}) == 1


def test_runs_that_finish_together_all_get_a_row(tmp_path):
    path = tmp_path / "scoreboard.csv"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add, args=(path, number)) for number in range(12)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert {row["name"] for row in read_scoreboard(path)} == {f"run{number}" for number in range(12)}
    assert {entry.name for entry in tmp_path.iterdir()} <= {"scoreboard.csv", "scoreboard.csv.lock"}


def test_a_run_has_one_row_which_its_test_joins(tmp_path):
    path = tmp_path / "scoreboard.csv"
    for log_dir in ("runs/a", "runs/b", ""):
        add_to_scoreboard(path, result("run", 0.5, log_dir=log_dir))
    add_to_scoreboard(path, result("run", 0.5, log_dir="runs/a", protocol="holdout", test={"test/acc": 0.25}))
    rows = read_scoreboard(path)
    assert [row["log_dir"] for row in rows] == ["runs/b", "", "runs/a"]
    assert [row["test"] for row in rows] == ["", "", "0.25"]
    first, holdout = scoreboard_table(rows).split("\n\n")  # by another protocol: they do not compare
    assert "25.00" not in first
    assert holdout.startswith("protocol holdout\n")
    assert "25.00" in holdout


def test_a_folder_is_the_same_by_any_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("runs")
    path = tmp_path / "scoreboard.csv"
    for log_dir in ("runs/b", "runs/a", str(tmp_path / "runs" / "a"), "link/../runs/a", "", str(tmp_path)):
        add_to_scoreboard(path, result("run", 0.5, log_dir=log_dir))
    assert [row["log_dir"] for row in read_scoreboard(path)] == ["runs/b", "link/../runs/a", "", str(tmp_path)]


def test_scores_have_a_board_each(tmp_path):
    path = tmp_path / "scoreboard.csv"
    add_to_scoreboard(path, result("classifier", 0.5))
    for name, value in (("worse", 2e-3), ("better", 1e-3)):
        add_to_scoreboard(path, result(name, value, score=MonitoredMetric("val/mse", "min", percent=False)))
    accuracy, error = scoreboard_table(read_scoreboard(path)).split("\n\n")
    assert "val/acc %" in accuracy
    assert [line.split()[0] for line in error.splitlines()[2:]] == ["better", "worse"]


def test_a_board_of_an_earlier_version_is_read(tmp_path):
    path = tmp_path / "scoreboard.csv"
    path.write_text("name,best,epoch\nold,0.5,3\n")
    add_to_scoreboard(path, result("new", 0.75))
    rows = read_scoreboard(path)
    assert [row["name"] for row in rows] == ["old", "new"]
    assert [line.split()[:3] for line in scoreboard_table(rows).splitlines()[2:]] == [
        ["new", "0", "75.00"],
        ["old", "-", "50.00"],
    ]


def test_another_file_is_not_overwritten(tmp_path):
    path = tmp_path / "scoreboard.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is not a scoreboard"):
        add_to_scoreboard(path, result("run", 0.5))
    assert path.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,best\nrun,high\n", "row 1 has 'high' for best, which must be a number"),
        ("name,best\nrun,\n", "row 1 has '' for best, which must be a number"),
        ("name,best,parameters\na,1,2\nb,1,2.5\n", "row 2 has '2.5' for parameters, which must be a number"),
        ("name,best,score\na,1,train/acc\n", "row 1 has the score 'train/acc', which must begin with 'val/'"),
        ("", "its columns must be name, score, "),
    ],
)
def test_what_could_not_be_shown_is_refused_when_it_is_read(tmp_path, content, message):
    path = tmp_path / "scoreboard.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path} is not a scoreboard: {message}"):
        read_scoreboard(path)


def test_a_folder_and_bytes_are_no_scoreboards(tmp_path):
    with pytest.raises(ValueError, match="is not a scoreboard"):
        read_scoreboard(tmp_path)
    (tmp_path / "scoreboard.csv").write_bytes(b"name,best\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match="is not a scoreboard"):
        read_scoreboard(tmp_path / "scoreboard.csv")


def test_the_optimizer_tells_runs_of_one_name_apart(tmp_path):
    path = tmp_path / "scoreboard.csv"
    for optimizer in ("SOAP+AdamW", "AdamW"):
        add_to_scoreboard(path, result("demo", 0.5, optimizer=optimizer))
    assert [row["optimizer"] for row in read_scoreboard(path)] == ["SOAP+AdamW", "AdamW"]
    header, _, *lines = scoreboard_table(read_scoreboard(path)).splitlines()
    assert header.split()[-3] == "optimizer"
    assert [line.split()[-3] for line in lines] == ["SOAP+AdamW", "AdamW"]


DATA = "Images, train 11 (8 samples), val 22 (4 samples)"


@pytest.mark.parametrize(
    "other",
    [
        {"data": "Images, train 11 (8 samples), val 33 (4 samples)"},
        {"protocol": "holdout"},
        {"validated": "1 of 4 batches of 1"},
        {"score": MonitoredMetric("val/acc5")},
        {"score": MonitoredMetric("val/acc", "min")},
        {"data": ""},
    ],
    ids=str,
)
def test_rows_that_do_not_compare_stand_apart_those_of_the_run_first(tmp_path, other):
    path = tmp_path / "scoreboard.csv"
    usual = {"data": DATA, "protocol": "test"}
    for name, options in (("a", usual), ("b", usual), ("c", usual | other)):
        own = add_to_scoreboard(path, result(name, 0.5, **options))
    rows = read_scoreboard(path)
    first, second = scoreboard_table(rows, *(row for row in rows if row == own)).split("\n\n")
    assert "→ c" in first
    assert second.startswith(f"{DATA}; protocol test\n  experiment ")
    assert [line[:3] for line in second.splitlines()[3:]] == ["  a", "  b"]
    assert {line[:3] for line in scoreboard_table([*rows[:2], *rows[:2]]).splitlines()[3:]} == {"a  ", "b  "}


def test_a_name_is_as_long_as_tells_rows_apart_and_no_longer(tmp_path):
    path = tmp_path / "scoreboard.csv"
    common = [f"some_long_setting_{number}={number}" for number in range(9)]
    own = [[], ["+ cv/align_hand"], ["clamp=null"], ["+ cv/align_hand", "clamp=null"]]
    for label in own:
        add_to_scoreboard(path, result("run", 0.5, label=(*label, *common)))
    heading, table = scoreboard_table(read_scoreboard(path)).split("\n\n")
    assert heading == f"In every row: {', '.join(common)}"
    assert [line[:35].strip() for line in table.splitlines()[2:]] == [run_title("run", label) for label in own]


PARTS = st.lists(st.sampled_from(["+ a", "+ b", *(f"a_setting_with_a_name_{n}={n}" for n in range(6))]), unique=True)


@given(st.lists(PARTS, min_size=1, max_size=8, unique_by=tuple))
def test_different_labels_are_different_rows(labels):
    rows = [ROW | {"label": "; ".join(label), "log_dir": str(number)} for number, label in enumerate(labels)]
    names = [line.partition(" " * 2)[0] for line in table_of(rows)]
    assert len(set(names)) == len(labels)


@given(st.lists(st.dictionaries(st.sampled_from(["model.lr", "data.lr", "trainer.x"]), st.integers(0, 2)), min_size=2))
def test_settings_tell_rows_apart_that_have_the_same_label(settings_of_rows):
    rows = [ROW | {"settings": json.dumps(each or {"trainer.y": 0})} for each in settings_of_rows]
    names = [line.partition(" " * 2)[0] for line in table_of(rows)]
    assert len(set(names)) == len({row["settings"] for row in (sorted_settings(row) for row in rows)})


ROW = dict.fromkeys(COLUMNS, "") | {"name": "run", "best": "0.5", "score": "val/acc", "mode": "max", "percent": "1"}


def sorted_settings(row):
    return {"settings": json.dumps(json.loads(row["settings"]), sort_keys=True)}


def table_of(rows):
    return scoreboard_table(rows).rpartition("---\n")[2].splitlines()


def test_seconds_of_a_busy_machine_have_a_star(tmp_path):
    path = tmp_path / "scoreboard.csv"
    add_to_scoreboard(path, result("busy", 0.5, others=1.5, busy=True))
    add_to_scoreboard(path, result("idle", 0.25, others=0.0))
    table, note = scoreboard_table(read_scoreboard(path)).split("\n\n")
    assert [line.split()[-1] for line in table.splitlines()[2:]] == ["2.0*", "2.0"]
    assert note == "* other processes kept the machine busy: these seconds are not to be relied on"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")])
def test_duration(seconds, text):
    assert duration(seconds) == text
