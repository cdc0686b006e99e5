"""A few of the random command lines of ``make fuzz``, and what decides about them; completion of a shell."""

import runpy
import subprocess
from pathlib import Path

import pytest

from eigenscope import cli

FUZZ = runpy.run_path(str(Path(__file__).with_name("fuzz_command_line.py")))


def test_every_random_command_line_runs_or_is_one_sentence(tmp_path):
    FUZZ["prepare"](tmp_path)
    kinds = {}
    for number in range(4):
        line, outcome, kind = FUZZ["attempt"](0, number, tmp_path)
        kinds[number] = kind
        assert kind in ("ran", "refused"), f"{number} {kind}: {' '.join(line.args)}\n{outcome.output[-2000:]}"


def test_what_is_neither_done_nor_said_is_silent():
    line = FUZZ["Line"](["fit"], asked={"trainer.max_epochs": 3}, added=["EpochTable"], overlays=["cv/align_hand"])
    config = {"trainer": {"max_epochs": 8, "callbacks": [{"class_path": "eigenscope.callbacks.EpochTable"}]}}
    assert line.missed(config, "") == ["trainer.max_epochs", "CVLossSchedule"]
    assert line.missed(config, "warning: max_epochs is another, and CVLossSchedule is gone") == []

    line = FUZZ["Line"](["fit"], asked={FUZZ["OPTIMIZER"]: "torch.optim.SGD"}, overlays=["optimizer/adamw"])
    config = {"model": {"init_args": {"optimizer": {"class_path": "torch.optim.SGD"}}}, "trainer": {"callbacks": []}}
    assert line.missed(config, "") == []  # the option takes the place of the overlay's optimizer
    assert line.missed({"model": {}, "trainer": {"callbacks": []}}, "") == [FUZZ["OPTIMIZER"]]


def test_a_shell_completes_subcommands_and_options(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--print_shtab", "bash"])
    assert not stop.value.code
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    for words, expected in [
        (["co"], "compare"),
        (["fit", "--trainer.max_e"], "--trainer.max_epochs"),
        (["compare", "--se"], "--seeds"),
        (["fit", "--model", "ImageC"], "ImageClassificationModule"),
    ]:
        typed = " ".join(["eigenscope", *words])
        ask = f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _shtab_eigenscope"
        ask += '; echo "${COMPREPLY[@]}"'
        found = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        assert found.stdout.split() == [expected]
    with pytest.raises(SystemExit):
        cli.main(["--print_shtab", "elvish"])
    assert "--print_shtab: expected bash, " in capsys.readouterr().err
