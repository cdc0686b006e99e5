"""The shipped runs around a gradient spike, shortened, at the command line: what they are there to show."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from spike_tables import DISTANCES, read_angles, read_spectrum

from eigenscope import cli
from eigenscope.cli import lightning_cli

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "spike").glob("*.yaml"))
STEPS = 62
PRECISIONS = ("high", "highest")
SPIKE = 51  # the step that takes it, from 1
OPTIONS = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Log folders by the names of the configurations."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("spike")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for path in CONFIGS:
            run = cli.main(["fit", "--config", str(path), f"--data.init_args.steps={STEPS}", *OPTIONS])
            assert run.trainer.global_step == STEPS
            assert run.trainer.log_dir.startswith(f"runs/spike_{path.stem}/")
            found[path.stem] = root / run.trainer.log_dir
    return found


def test_there_is_every_pair_of_optimizer_and_precision():
    assert [path.stem for path in CONFIGS] == ["rekls_high", "rekls_highest", "soap_high", "soap_highest"]


@pytest.mark.parametrize("name", ["soap", "rekls"])
def test_in_tf32_the_spike_turns_the_eigenbasis(name, folders):
    angles = read_angles(folders[f"{name}_high"])
    assert all(max(angles[SPIKE - 1, f"lag:{distance}"]) <= 0.1 for distance in DISTANCES)
    assert max(angles[SPIKE, "pre_spike"]) <= 0.1  # the step that takes it divides by the factors from before
    assert all(angles[step, "pre_spike"][1] > 80 for step in range(SPIKE + 1, STEPS + 1))
    assert all(angles[step, "post_spike"][1] > 80 for step in range(SPIKE + 1, STEPS + 1))


@pytest.mark.parametrize("name", ["soap", "rekls"])
def test_in_full_precision_it_does_not(name, folders):
    angles = read_angles(folders[f"{name}_highest"])
    compared = {key: value for key, value in angles.items() if key[0] > 12}
    assert {reference for _, reference in compared} == {*(f"lag:{d}" for d in DISTANCES), "pre_spike", "post_spike"}
    assert max(max(pair) for pair in compared.values()) <= 0.1


@pytest.mark.parametrize("name", ["soap", "rekls"])
def test_in_tf32_the_factor_grows(name, folders):
    spectrum = read_spectrum(folders[f"{name}_high"])
    assert spectrum[SPIKE + 1][1] > 5 * spectrum[SPIKE][1]


@pytest.mark.parametrize("name", ["soap", "rekls"])
def test_in_full_precision_the_factor_decays_as_its_average_does(name, folders):
    spectrum = read_spectrum(folders[f"{name}_highest"])
    for step in range(12, STEPS):
        decay = 1 - 0.05 / (1 - 0.95 ** (step + 1))  # 0.95, corrected for the zeros that the factor began with
        for rank in (1, 2, 5, 10):
            assert spectrum[step + 1][rank] / spectrum[step][rank] == pytest.approx(decay, rel=1e-3), (step, rank)


def test_before_the_spike_the_precisions_agree(folders):
    spectra = [read_spectrum(folder) for folder in folders.values()]
    for spectrum in spectra[1:]:
        assert spectrum[SPIKE][1] == pytest.approx(spectra[0][SPIKE][1], rel=1e-3)


def test_a_run_can_be_gone_on_with(folders):
    checkpoint = torch.load(folders["rekls_highest"] / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == STEPS
    (state,) = checkpoint["optimizer_states"][0]["state"].values()
    top = read_spectrum(folders["rekls_highest"])[STEPS][1]
    assert float(torch.linalg.eigvalsh(state["L"].double())[-1]) == pytest.approx(top, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["soap", "rekls"])
def test_the_runs_differ_in_their_precision_alone(optimizer):
    high, highest = (cli.resolve(["--config", str(CONFIGS[0].with_name(f"{optimizer}_{p}.yaml"))]) for p in PRECISIONS)
    for config, precision in ((high, "high"), (highest, "highest")):
        assert config["trainer"]["gradient_clip_val"] is None
        assert config["trainer"]["logger"]["init_args"].pop("name") == f"spike_{optimizer}_{precision}"
        arguments = config["model"]["init_args"]["optimizer"]["init_args"]
        assert arguments.pop("emulate_tf32") == (precision == "high")
        assert {arguments.pop(name) for name in ("fp32_matmul_prec", "qr_fp32_matmul_prec")} == {precision}
        assert (arguments["lr"], arguments["weight_decay"], arguments["shampoo_beta"]) == (1.0, 0.0, 0.95)
        assert (list(arguments["betas"]), arguments.get("use_kl_shampoo", True)) == ([0.9, 0.95], True)
        data = config["data"]["init_args"]
        assert (data["rows"], data["columns"], data["steps"], data["spike_step"]) == (128, 64, 200, SPIKE - 1)
    assert high == highest


def test_a_spike_outside_the_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(lightning_cli.ConfigurationError, match=r"spike_step must be in .* \[0, 200\), got 200"):
        cli.main(["fit", "--config", str(CONFIGS[0]), "--data.init_args.spike_step=200", *OPTIONS])
    with pytest.raises(ValueError, match=r"'weight' is \(128, 64\), the gradients are \(64, 64\)"):
        cli.main(["fit", "--config", str(CONFIGS[0]), "--data.init_args.rows=64", *OPTIONS])


@pytest.mark.long  # the matrix does so with soap_highest
def test_two_ranks_replay_what_one_does(folders, tmp_path):
    """Every rank sees every gradient, so their mean is the gradient itself."""
    config = next(path for path in CONFIGS if path.stem == "rekls_highest")
    arguments = ["--config", str(config), f"--data.init_args.steps={STEPS}", *OPTIONS]
    arguments += ["--trainer.strategy=ddp", "--trainer.devices=2"]
    command = [sys.executable, "-W", "ignore", "-m", "eigenscope", "fit", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    paths = [tmp_path / "runs" / "spike_rekls_highest" / "version_0", folders["rekls_highest"]]
    one, two = (torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in paths)
    assert one["global_step"] == two["global_step"] == STEPS
    assert torch.equal(one["state_dict"]["net.weight"], two["state_dict"]["net.weight"])
