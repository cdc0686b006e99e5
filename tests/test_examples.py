"""The examples run, and say what their titles ask."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
SAID = {
    "batteries": "brown",
    "geometry": "an untrained network: CV",
    "kv": "TransformCodec: 2.0",
    "spike": "high: root",
}


@pytest.mark.parametrize("name", SAID)
def test_an_example_without_lightning(name, capsys):
    (path,) = [path for path in EXAMPLES if path.stem == name]
    runpy.run_path(str(path), run_name="__main__")
    assert SAID[name] in capsys.readouterr().out


def test_the_taps(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (path,) = [path for path in EXAMPLES if path.stem == "taps"]
    small = ["--data.init_args.train_size=200", "--data.init_args.test_size=100", "--data.init_args.num_workers=0"]
    small += ["--data.init_args.batch_size=100", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    small += ["--trainer.enable_progress_bar=false", "--model.init_args.net.init_args.width=16"]
    runpy.run_path(str(path))["main"](small)
    assert "SVD taps change the best validation accuracy by" in capfd.readouterr().out


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES} == {*SAID, "taps"}
