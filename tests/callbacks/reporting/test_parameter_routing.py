"""Through the command line, whose every run has the callback."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eigenscope import cli

CONFIGS = Path(__file__).parents[3] / "configs"
ARGUMENTS = [
    "--model.init_args.net.init_args.width=16",
    "--model.init_args.net.init_args.num_heads=2",
    "--data.init_args.train_size=200",
    "--data.init_args.test_size=100",
    "--data.init_args.batch_size=50",
    "--data.init_args.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=1",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


def fit(folder, monkeypatch, *more):
    monkeypatch.chdir(folder)
    run = cli.main(["fit", "--config", str(CONFIGS / "demo.yaml"), *more, *ARGUMENTS])
    events = EventAccumulator(run.trainer.log_dir)
    events.Reload()
    return events


def test_the_table_is_printed_once_and_logged(tmp_path, monkeypatch, capsys):
    events = fit(tmp_path, monkeypatch, "--config", str(CONFIGS / "optimizer" / "muon.yaml"))
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "qkv" in line]
    assert line.split() == ["blocks.{0-3}.attention.qkv.weight", "48", "×", "16", "4", "3,072", "matrix"]
    assert printed.index("Muon") < printed.index("epoch train")
    (card,) = events.Tensors("optimizer/routing/text_summary")
    (text,) = card.tensor_proto.string_val
    shown = text.decode().splitlines()
    assert f"    {line}" in shown
    assert all(line.startswith("    ") for line in shown)  # Markdown's block of code keeps columns aligned


def test_an_optimizer_that_does_not_route_has_no_table(tmp_path, monkeypatch, capsys):
    events = fit(tmp_path, monkeypatch)
    assert "biases, gains" not in capsys.readouterr().out
    assert "optimizer/routing/text_summary" not in events.Tags()["tensors"]
