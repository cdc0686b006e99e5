"""Every shipped configuration parses and says what it should; that each runs is shown by the matrix."""

from pathlib import Path

import pytest
import yaml

from eigenscope import cli
from eigenscope.nn import DeiT, PatchSVAE
from eigenscope.optim.schedules import SCHEDULES
from tests.matrix.cells import Cell, arguments, prepare

ROOT = Path(__file__).parents[1]
CV_OVERLAYS = sorted((ROOT / "configs" / "cv").glob("*.yaml"))  # each is added to another configuration
IMPLANT_OVERLAYS = sorted((ROOT / "configs" / "implant").glob("*.yaml"))
OPTIMIZER_OVERLAYS = sorted((ROOT / "configs" / "optimizer").glob("*.yaml"))
KV_CHECK = ROOT / "configs" / "callbacks" / "kv_check.yaml"
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if "data" in yaml.safe_load(path.read_text()))
# whose optimizer may be another, and which validate
EXPERIMENTS = [path for path in CONFIGS if path.parent.name != "spike"]
TAPPED = {"deit_svd": "svd", "deit_gram_diagonal": "gram_diagonal", "deit_pooled": "pooled", "deit_zeros": "zeros"}


def resolve(args):
    """The settings of a run, without what it is called."""
    config = cli.resolve(args)
    del config["label"]
    return config


def resolved(name):
    return resolve(["--config", str(ROOT / "configs" / f"{name}.yaml")])


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Trains an experiment for two steps, an overlay after a plus sign."""
    monkeypatch.chdir(prepare(tmp_path))
    return lambda experiment: cli.main(["fit", *arguments(Cell(experiment))])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_run_is_kept_under_the_name_of_its_experiment(path):
    experiment = path.stem if path.parent.name == "configs" else f"{path.parent.name}_{path.stem}"
    logger = yaml.safe_load(path.read_text())["trainer"]["logger"]["init_args"]
    assert (logger["save_dir"], logger["name"]) == ("runs", experiment)


@pytest.mark.parametrize("name", ["svae_noise", "svae_noise_small", "svae_freckles", "svae_cifar"])
@pytest.mark.parametrize("overlay", CV_OVERLAYS, ids=lambda path: f"{path.parent.stem}-{path.stem}")
def test_overlays_add_to_a_configuration(overlay, name):
    plain = resolved(name)
    added = resolve(["--config", str(ROOT / "configs" / f"{name}.yaml"), "--config", str(overlay)])
    *callbacks, schedule = added["trainer"].pop("callbacks")
    assert schedule["class_path"].endswith("CVLossSchedule")
    assert (plain["trainer"].pop("callbacks"), plain) == (callbacks, added)


@pytest.mark.parametrize("name", ["demo", "deit_svd"])
def test_the_kv_check_adds_to_a_deit(name):
    path = ROOT / "configs" / f"{name}.yaml"
    plain, added = (resolve(["--config", str(path), *more])["trainer"] for more in ([], ["--config", str(KV_CHECK)]))
    *callbacks, check = added.pop("callbacks")
    assert (plain.pop("callbacks"), plain) == (callbacks, added)
    assert check["class_path"].endswith("KVCacheCompression")


def test_experiments_state_nothing_of_their_optimizer_that_an_overlay_would_take_over_by_accident():
    files = [path for path in EXPERIMENTS if path.parent.name in ("configs", "ablation")]
    optimizers = {path.stem: yaml.safe_load(path.read_text())["model"]["init_args"]["optimizer"] for path in files}
    plain = {name: o["init_args"] for name, o in optimizers.items() if o["class_path"].startswith("torch.optim.Adam")}
    assert len(plain) >= 20  # others are split on purpose, and take no overlay
    for name, stated in plain.items():
        assert {"lr"} <= set(stated) <= {"lr", "weight_decay", "betas"}, name  # a SplitOptimizer has no betas


@pytest.mark.parametrize("name", ["demo", "deit_svd", "svae_noise"])
@pytest.mark.parametrize("overlay", OPTIMIZER_OVERLAYS, ids=lambda path: path.stem)
def test_an_optimizer_overlay_keeps_the_rate_and_the_decay_and_nothing_else(overlay, name):
    before = resolved(name)
    after = resolve(["--config", str(ROOT / "configs" / f"{name}.yaml"), "--config", str(overlay)])
    stated = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())["model"]["init_args"]["optimizer"]
    written = yaml.safe_load(overlay.read_text())["model"]["init_args"]["optimizer"]
    optimizer = after["model"]["init_args"].pop("optimizer")
    del before["model"]["init_args"]["optimizer"]
    assert after == before
    assert optimizer["class_path"].endswith(written["class_path"])
    expected = {
        "weight_decay": 0.01 if overlay.stem == "adamw" else None,
        **written["init_args"],
        **stated["init_args"],
    }
    for part in ("matrix", "other"):
        if part in expected:
            wanted, got = expected.pop(part), optimizer["init_args"][part]
            assert got["class_path"] == wanted["class_path"]
            assert got["init_args"].items() >= wanted["init_args"].items()
            assert got["init_args"]["weight_decay"] == 0.01
            assert not any(
                got["init_args"].get(name) for name in ("amsgrad", "maximize", "foreach", "fused", "capturable")
            )
    assert optimizer["init_args"].items() >= expected.items()


@pytest.mark.parametrize(
    ("overlay", "name", "matrices"),
    [
        ("soap", "demo_svd", 16),
        ("rekls", "svae_noise_small", 13),
        ("muon", "vae_plain", 12),
        pytest.param("muon", "demo", 16, marks=pytest.mark.long),
    ],
)
def test_an_optimizer_overlay_runs(overlay, name, matrices, fit):
    path = ROOT / "configs" / f"{name}.yaml"
    run = fit(f"{name}+optimizer/{overlay}")
    assert run.trainer.global_step == 2
    optimizer = run.trainer.optimizers[0]
    assert type(optimizer.matrix).__name__.lower() == overlay
    assert len(optimizer.matrix.state) == matrices
    stated = yaml.safe_load(path.read_text())["model"]["init_args"]["optimizer"]["init_args"]
    for group in optimizer.param_groups:
        assert group.get("max_lr", group.get("initial_lr", group["lr"])) == stated["lr"]
        assert group["weight_decay"] == stated.get("weight_decay", 0.01)


@pytest.mark.parametrize("name", ["demo", "svae_noise_small"])
def test_a_watched_experiment_is_the_plain_one_with_rekls_and_two_watched_layers(name):
    overlay = ROOT / "configs" / "optimizer" / "rekls.yaml"
    plain = resolve(["--config", str(ROOT / "configs" / f"{name}.yaml"), "--config", str(overlay)])
    watched = resolved(f"{name}_rekls")
    callbacks = watched["trainer"]["callbacks"]
    (callback,) = [entry for entry in callbacks if entry["class_path"] == "eigenscope.callbacks.EigenbasisRotation"]
    callbacks.remove(callback)
    assert len(callback["init_args"]["parameters"]) == 2
    names = [config["trainer"]["logger"]["init_args"].pop("name") for config in (plain, watched)]
    assert names == [name, f"{name}_rekls"]
    assert watched == plain


def test_stacked_networks_have_no_matrices_for_an_overlay(fit):
    with pytest.raises(ValueError, match=r"params must have a matrix .*3-D: encoder.0.weight \(16, 64, 48\)"):
        fit("batteries_small+optimizer/soap")


@pytest.mark.parametrize(
    ("name", "parameters"), [("svae_noise", 16_942_419), ("svae_freckles", 2_557_539), ("svae_cifar", 2_557_539)]
)
def test_the_spectral_autoencoders_are_the_published_ones(name, parameters):
    config = resolved(name)
    model = config["model"]["init_args"]
    assert sum(p.numel() for p in PatchSVAE(**model["net"]["init_args"]).parameters()) == parameters
    assert model["lr_scheduler"]["init_args"]["T_max"] is None  # it follows the run
    assert (model["cross_attention_clip"], model["loss"]) == (0.5, "mse")


def test_the_recipe_is_the_reported_one():
    config = resolved("deit_svd")
    model = config["model"]["init_args"]
    assert model["net"]["init_args"]["taps"] == {"layers": [3, 6, 9, 12], "rank": 32, "features": "svd"}
    assert model["optimizer"]["class_path"] == "torch.optim.AdamW"
    optimizer = model["optimizer"]["init_args"]
    assert (optimizer["lr"], optimizer["weight_decay"]) == (3e-4, 0.05)
    assert model["lr_scheduler"]["class_path"] == "eigenscope.optim.CosineAnnealingLR"
    assert (model["lr_scheduler"]["init_args"]["T_max"], config["trainer"]["max_epochs"]) == (None, 100)
    assert (model["lr_interval"], model["label_smoothing"]) == ("epoch", 0.0)
    assert (config["trainer"]["precision"], config["trainer"]["gradient_clip_val"]) == ("bf16-mixed", 1.0)
    data = config["data"]["init_args"]
    assert (data["source"], data["protocol"], data["augmentation"]) == ("torchvision", "test", "recipe")
    assert data["batch_size"] == 256


@pytest.mark.parametrize("name", TAPPED)
def test_arms_differ_in_their_taps_alone(name):
    baseline, arm = resolved("deit_baseline"), resolved(name)
    taps = arm["model"]["init_args"]["net"]["init_args"].pop("taps")
    assert taps == {"layers": [3, 6, 9, 12], "rank": 32, "features": TAPPED[name]}
    assert baseline["model"]["init_args"]["net"]["init_args"].pop("taps") is None
    names = [config["trainer"]["logger"]["init_args"].pop("name") for config in (baseline, arm)]
    assert names == ["deit_baseline", name]
    assert arm == baseline


def test_the_demo_arms_differ_in_their_taps_alone():
    plain, tapped = resolved("demo"), resolved("demo_svd")
    assert plain["model"]["init_args"]["net"]["init_args"].pop("taps") is None
    assert tapped["model"]["init_args"]["net"]["init_args"].pop("taps")["features"] == "svd"
    for config in (plain, tapped):
        config["trainer"]["logger"]["init_args"].pop("name")
    assert plain == tapped


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_schedule_states_a_length_that_it_could_take_from_the_run(path):
    schedule = yaml.safe_load(path.read_text())["model"]["init_args"].get("lr_scheduler")
    if schedule is not None:
        kinds = {f"eigenscope.optim.{kind.__name__}": kind for kind in SCHEDULES.values()}
        assert set(kinds[schedule["class_path"]].length_arguments).isdisjoint(schedule.get("init_args", {}))


def test_the_baseline_config_builds_the_published_network():
    net = resolved("deit_baseline")["model"]["init_args"]["net"]["init_args"]
    assert sum(p.numel() for p in DeiT(**net).parameters()) == 21_526_372


@pytest.mark.parametrize("overlay", IMPLANT_OVERLAYS, ids=lambda path: path.stem)
def test_the_controls_of_the_implant_study(overlay, fit):
    run = fit(f"vae_implanted+implant/{overlay.stem}")
    assert run.trainer.global_step == 2
    steps = 0 if overlay.stem == "random" else 10
    assert run.trainer.callback_metrics["implants/steps"] == steps


def test_the_arms_of_the_implant_study_differ_in_their_implants_alone():
    plain, implanted = resolved("vae_plain"), resolved("vae_implanted")
    for config in (plain, implanted):
        config["trainer"]["logger"]["init_args"].pop("name")
        callbacks = config["trainer"]["callbacks"]
        config["trainer"]["callbacks"] = [
            c for c in callbacks if c["class_path"] != "eigenscope.callbacks.ImplantPolicy"
        ]
        net = config["model"]["init_args"]["net"]
        net.pop("class_path")
        for name in ("container", "batteries", "source", "implant_points"):
            net["init_args"].pop(name, None)
    assert plain == implanted
