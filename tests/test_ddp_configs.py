"""Every shipped configuration runs two steps on two ranks, which end with the same weights."""

import hashlib
import importlib.util
from pathlib import Path

import pytest
import yaml

from eigenscope import cli

pytestmark = pytest.mark.xdist_group("ddp")  # one pool for all, with --dist loadgroup
CONFIGS = Path(__file__).parents[1] / "configs"
EXPERIMENTS = sorted(path for path in CONFIGS.rglob("*.yaml") if "data" in yaml.safe_load(path.read_text()))
STEPS_TO_THE_SPIKE = 52  # its place is part of the configuration
TWO = "trainer: {accelerator: cpu, devices: 2, strategy: ddp}"
TOGETHER = [
    ("demo_svd", "optimizer/soap"),
    ("demo_svd", "optimizer/muon"),
    ("svae_noise_small", "optimizer/rekls"),
    ("svae_noise_small", "optimizer/soap"),
    ("vae_plain", "optimizer/muon"),
    ("svae_noise_small", "cv/align_hand"),
    ("svae_noise", "cv/soft_hand"),
    ("vae_implanted", "implant/random"),
    ("vae_implanted", "implant/shuffled"),
    ("demo", "callbacks/kv_check"),
]


def two_steps(config, root, *overlays):
    """Digests of the weights after two steps on this rank; ``root`` is a folder of images."""
    path = Path(config)
    if path.parent.name == "spike":
        more = [f"--data.init_args.steps={STEPS_TO_THE_SPIKE}", "--trainer.enable_progress_bar=false"]
        run = cli.main(["fit", "--config", config, *(f"--config={overlay}" for overlay in overlays), *more])
    else:
        source = Path(__file__).with_name("test_configs.py")
        specification = importlib.util.spec_from_file_location("test_configs", source)
        one_process = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(one_process)
        run = one_process.run_two_steps(path, lambda **_: root, *map(Path, overlays))
    assert run.trainer.world_size == 2
    assert type(run.trainer.strategy).__name__ == "DDPStrategy"
    assert not run.trainer.strategy._ddp_kwargs.get("find_unused_parameters")
    assert run.trainer.global_step == (STEPS_TO_THE_SPIKE if path.parent.name == "spike" else 2)
    weights = {name: parameter.detach().numpy().tobytes() for name, parameter in run.model.named_parameters()}
    return {name: hashlib.sha256(numbers).hexdigest() for name, numbers in weights.items()}


def agree(outcomes):
    first, second = (outcome.value for outcome in outcomes)
    assert first == second
    assert first
    assert "epoch" not in outcomes[1].printed  # tables are rank zero's


@pytest.fixture(scope="module")
def overlay(tmp_path_factory):
    path = tmp_path_factory.mktemp("overlay") / "two.yaml"
    path.write_text(TWO)
    return str(path)


@pytest.fixture
def root(make_tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(make_tree(classes=5, train=20))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.stem}-{path.stem}")
def test_runs_two_steps_on_two_ranks(path, overlay, root, two_ranks):
    agree(two_ranks.run(two_steps, str(path), root, overlay))


@pytest.mark.parametrize(("name", "added"), TOGETHER)
def test_runs_two_steps_with_an_overlay(name, added, overlay, root, two_ranks):
    agree(two_ranks.run(two_steps, str(CONFIGS / f"{name}.yaml"), root, str(CONFIGS / f"{added}.yaml"), overlay))
