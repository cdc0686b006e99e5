from pathlib import Path

import pytest
from jsonargparse import Namespace

from eigenscope.callbacks.resuming.continued_csv import ContinuedCSV
from eigenscope.callbacks.resuming.continued_tensorboard import ContinuedBoard
from eigenscope.cli.resume.continued_run import continue_run, run_of

RUN = Path("runs/demo/version_3")
LAST = RUN / "checkpoints" / "last.ckpt"


@pytest.fixture(autouse=True)
def _run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    LAST.parent.mkdir(parents=True)
    (RUN / "run.json").write_text("{}")


def logger(kind, /, **arguments):
    return {"class_path": f"lightning.pytorch.loggers.{kind}", "init_args": arguments}


def board(kind="TensorBoardLogger", /, **arguments):
    return logger(kind, **{"save_dir": "runs", "name": "demo", "version": None} | arguments)


def continued(given, path=LAST, root=None, **checkpoint):
    """The folder in which a run continues, the callbacks, and the loggers' arguments."""

    def namespace(each):
        return Namespace(class_path=each["class_path"], init_args=Namespace(**each["init_args"]))

    live = given
    if isinstance(given, dict | list):
        live = [namespace(each) for each in given] if isinstance(given, list) else namespace(given)
    config = Namespace(trainer=Namespace(logger=live))
    plain = {"logger": given, "default_root_dir": root}
    found = continue_run(config, plain, path, {"global_step": 8, "saved_at": 1.0} | checkpoint)
    after = config.trainer.logger
    after = [] if isinstance(after, bool) or after is None else after if isinstance(after, list) else [after]
    return found.folder, [type(each) for each in found.callbacks], [vars(each.init_args) for each in after]


@pytest.mark.parametrize("kind", ["TensorBoardLogger", "CSVLogger"])
@pytest.mark.parametrize(
    ("arguments", "continues"),
    [
        ({}, True),
        ({"version": 3}, True),
        ({"version": "version_3"}, True),
        ({"version": 4}, False),
        ({"version": "mine"}, False),
        ({"name": "other"}, False),
        ({"save_dir": "elsewhere"}, False),
        ({"save_dir": "./runs/../runs"}, True),
        ({"save_dir": "runs/demo", "name": None}, True),
    ],
)
def test_a_logger_goes_on_in_the_folder_of_the_checkpoint_unless_it_names_another(kind, arguments, continues):
    for path in (LAST, LAST.absolute()):
        for given in (board(kind, **arguments), [board(kind, **arguments)]):
            folder, callbacks, (after,) = continued(given, path)
            if continues:
                assert folder.resolve() == RUN.resolve()
                assert callbacks == [ContinuedBoard if kind == "TensorBoardLogger" else ContinuedCSV]
                assert (after["version"], after.get("purge_step", 8)) == ("version_3", 8)
            else:
                assert (folder, callbacks) == (None, [])
                assert after == board(kind, **arguments)["init_args"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (logger("WandbLogger", id=None, version=None), {"id": "abc"}),
        (logger("WandbLogger", id="mine", version=None), {"id": "mine"}),
        (logger("MLFlowLogger", run_id=None), {"run_id": "abc"}),
        (logger("CometLogger", experiment_key=None), {"experiment_key": "abc"}),
    ],
)
def test_a_logger_that_writes_elsewhere_keeps_its_id(given, expected):
    begun = [{"class": given["class_path"].rpartition(".")[2], "version": "abc"}]
    for checkpoint in ({"loggers": begun}, {}):
        folder, callbacks, (after,) = continued(given, **checkpoint)
        assert (folder, callbacks) == (RUN, [])
        assert after == given["init_args"] | (expected if checkpoint else {})


def test_several_loggers_continue_each_in_its_own():
    begun = [
        {"class": "TensorBoardLogger", "root": "runs/demo", "version": "version_3"},
        {"class": "CSVLogger", "root": "tables/demo", "version": "version_7", "rows": 1},
        {"class": "WandbLogger", "version": "abc"},
    ]
    given = [board(), board("CSVLogger", save_dir="tables"), logger("WandbLogger", id=None)]
    folder, _, after = continued(given, loggers=begun)
    assert folder == RUN
    assert [each.get("version", each.get("id")) for each in after] == ["version_3", "version_7", "abc"]
    folder, _, after = continued([board(name="other"), logger("WandbLogger", id=None)], loggers=begun)
    assert folder is None  # the first that writes files decides
    assert after[1] == {"id": None}


def test_without_a_logger_or_with_lightnings_own_a_run_continues_in_its_folder():
    assert continued(False) == (RUN, [], [])
    assert continued([]) == (RUN, [], [])
    for given in (None, True):
        assert continued(given, root="runs")[0] is None  # it is not one of lightning_logs
        own = Path("runs/lightning_logs/version_0/checkpoints/last.ckpt")
        own.parent.mkdir(parents=True, exist_ok=True)
        (own.parents[1] / "config.yaml").write_text("")
        folder, callbacks, (after,) = continued(given, own, root="runs")
        assert (folder, callbacks) == (own.parents[1], [ContinuedBoard])
        assert after == {"name": "lightning_logs", "version": "version_0", "save_dir": "runs", "purge_step": 8}


def test_the_run_of_a_checkpoint_is_where_it_is_or_where_it_says():
    assert run_of(LAST, {}) == RUN
    assert run_of(LAST, {"run_folder": "gone"}) == RUN
    assert run_of(Path("kept.ckpt"), {"run_folder": str(RUN)}) == RUN
    for path in (RUN / "last.ckpt", RUN / "kept" / "last.ckpt", Path("elsewhere/checkpoints/last.ckpt")):
        assert run_of(path, {"run_folder": "gone"}) is None
        assert continued(board(), path)[0] is None
