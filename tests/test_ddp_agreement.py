"""On two ranks: every sample once, and one decision for both."""

import hashlib
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping

from eigenscope import cli
from eigenscope.callbacks import NonFiniteError
from eigenscope.data import RecallTask
from eigenscope.datamodules import (
    AssociativeRecallDataModule,
    CIFAR100DataModule,
    HeavyTailedNoiseDataModule,
    SyntheticImagesDataModule,
)
from eigenscope.lightning_modules import ImageClassificationModule

pytestmark = pytest.mark.xdist_group("ddp")  # one pool for all, with --dist loadgroup
CONFIGS = Path(__file__).parents[1] / "configs"
DDP = ["--trainer.strategy=ddp", "--trainer.devices=2"]
NET = "--model.init_args.net.init_args"
OPTIONS = [
    "--data.init_args.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--model.init_args.optimizer=torch.optim.SGD",
]
DEMO = [
    "--config",
    str(CONFIGS / "demo.yaml"),
    *OPTIONS,
    f"{NET}.width=16",
    f"{NET}.depth=2",
    f"{NET}.num_heads=2",
    f"{NET}.dropout=0.0",
    "--data.init_args.train_size=200",
    "--data.init_args.test_size=101",
    "--data.init_args.batch_size=50",
]
NOISE = [
    "--config",
    str(CONFIGS / "svae_noise_small.yaml"),
    *OPTIONS,
    "--data.init_args.image_size=8",
    "--data.init_args.samples_per_epoch=16",
    "--data.init_args.val_samples_per_type=3",
    "--data.init_args.batch_size=8",
    "--data.init_args.types=[gaussian, pink, uniform]",
    "--model.init_args.lr_scheduler=null",
]
TRAIN, HELD_OUT, BATCH = 43, 23, 8  # neither is a multiple of the ranks, nor the first of the batch


class Recorder(LightningModule):
    """Notes the digest of every sample it is handed."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": []}

    def training_step(self, batch, batch_idx):
        self.note("train", batch[0])
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.note("val", batch[0])

    def note(self, stage, samples):
        digests = [hashlib.sha256(sample.numpy().tobytes()).hexdigest() for sample in samples]
        self.seen[stage].append((self.current_epoch, digests))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def data_module(kind, root, workers):
    loading = {"batch_size": BATCH, "num_workers": workers}
    if kind == "noise":
        types = ["gaussian", "pink", "uniform"]
        return HeavyTailedNoiseDataModule(types, 8, TRAIN, 7, **loading)
    if kind == "recall":
        return AssociativeRecallDataModule(RecallTask(), samples_per_epoch=TRAIN, val_samples=HELD_OUT, **loading)
    options = {"protocol": "test", "augmentation": "none", **loading}
    if kind == "synthetic":
        return SyntheticImagesDataModule(TRAIN, HELD_OUT, **options)
    return CIFAR100DataModule(root, "folder", **options)


def samples_seen(kind, root, workers, devices):
    """What a rank sees in two epochs of training and validation."""
    seed_everything(0, verbose=False)
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(recorder, datamodule=data_module(kind, root, workers))
    return recorder.seen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["noise", "recall", "synthetic", "folder"])
def test_every_sample_is_seen_once_in_an_epoch(kind, workers, make_tree, tmp_path, monkeypatch, two_ranks):
    monkeypatch.chdir(tmp_path)
    root = str(make_tree(classes=1, train=TRAIN, test=HELD_OUT)) if kind == "folder" else ""
    parts = [outcome.value for outcome in two_ranks.run(samples_seen, kind, root, workers, 2)]
    whole = samples_seen(kind, root, 0, 1)
    for stage, count in (("train", TRAIN // BATCH * BATCH), ("val", 21 if kind == "noise" else HELD_OUT)):
        for epoch in range(2):
            one = [digests for number, digests in whole[stage] if number == epoch]
            ranks = [[digests for number, digests in part[stage] if number == epoch] for part in parts]
            assert len({digest for batch in one for digest in batch}) == count
            seen = sorted(digest for batches in ranks for batch in batches for digest in batch)
            assert seen == sorted(digest for batch in one for digest in batch)  # each once
            for batch, *shares in zip(one, *ranks, strict=True) if stage == "train" else ():
                assert [batch[0::2], batch[1::2]] == shares
    epochs = [{digest for number, batch in whole["train"] if number == epoch for digest in batch} for epoch in (0, 1)]
    assert len(epochs[0] & epochs[1]) == 0 if kind in ("noise", "recall") else len(epochs[0] & epochs[1]) >= 2 * 40 - 43


def decisions(arguments):
    """When a run ended, at which learning rate, and what its callbacks made of it."""
    run = cli.main(["fit", *arguments])
    trainer = run.trainer
    stopping = next((callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)), None)
    schedule = [config.scheduler for config in trainer.lr_scheduler_configs]
    curriculum = getattr(run.datamodule, "curriculum", None)
    return {
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
        "stopped_epoch": getattr(stopping, "stopped_epoch", None),
        "best": float(getattr(stopping, "best_score", 0.0)),
        "lr": trainer.optimizers[0].param_groups[0]["lr"],
        "bad_epochs": [getattr(scheduler, "num_bad_epochs", None) for scheduler in schedule],
        "unlocked_at": None if curriculum is None else curriculum.unlocked_at.tolist(),
        "best_checkpoint": getattr(trainer.checkpoint_callback, "best_model_path", ""),
    }


def decided(arguments, folder, monkeypatch, two_ranks):
    """What one process decides, after asking two, which must agree with each other and with it."""
    for name in ("one", "two"):
        (folder / name).mkdir()
    monkeypatch.chdir(folder / "two")
    first, second = (outcome.value for outcome in two_ranks.run(decisions, [*arguments, *DDP]))
    assert first == second
    monkeypatch.chdir(folder / "one")
    one = decisions(arguments)
    for key in ("epoch", "step", "stopped_epoch", "lr", "bad_epochs", "unlocked_at"):
        assert first[key] == one[key], key
    assert first["best"] == pytest.approx(one["best"], rel=1e-4)
    return one


def test_early_stopping_and_plateaus_come_at_the_same_epoch(tmp_path, monkeypatch, two_ranks):
    patience = "{class_path: EarlyStopping, init_args: {monitor: val/loss, mode: min, patience: 3, min_delta: 0.005}}"
    scheduler = "--model.init_args.lr_scheduler"
    plateau = [
        f"{scheduler}=lightning.pytorch.cli.ReduceLROnPlateau",
        f"{scheduler}.init_args.monitor=val/loss",
        f"{scheduler}.init_args.patience=0",
        f"{scheduler}.init_args.threshold=0.02",
        f"{scheduler}.init_args.factor=0.1",
        "--model.init_args.lr_interval=epoch",
    ]
    arguments = [*DEMO, "--model.init_args.optimizer.init_args.lr=0.3", *plateau, f"--trainer.callbacks+={patience}"]
    one = decided([*arguments, "--trainer.max_epochs=12"], tmp_path, monkeypatch, two_ranks)
    assert 3 < one["epoch"] < 12
    assert one["stopped_epoch"] == one["epoch"] - 1
    assert one["lr"] < 0.3


def test_a_curriculum_with_patience_unlocks_at_the_same_epoch(tmp_path, monkeypatch, two_ranks):
    curriculum = "{patience: 1, tiers: [[gaussian], [pink, uniform]]}"
    arguments = [*NOISE, f"--data.init_args.curriculum={curriculum}", "--model.init_args.optimizer.init_args.lr=1.0"]
    one = decided([*arguments, "--trainer.max_epochs=8"], tmp_path, monkeypatch, two_ranks)
    assert one["unlocked_at"][0] == 0 < one["unlocked_at"][1] < 8


def spoiled_on_one_rank(arguments, spoiled):
    """What a rank says of a loss that is not finite on one of them."""
    plain = ImageClassificationModule.training_step

    def training_step(module, batch, batch_idx):
        loss = plain(module, batch, batch_idx)
        return loss * torch.nan if (module.global_step, module.global_rank) == (2, spoiled) else loss

    ImageClassificationModule.training_step = training_step
    try:
        cli.main(["fit", *arguments])
    except NonFiniteError as error:
        return str(error)
    finally:
        ImageClassificationModule.training_step = plain
    return None


@pytest.mark.parametrize("spoiled", [0, 1])
def test_a_number_that_is_not_finite_on_one_rank_stops_both(spoiled, tmp_path, monkeypatch, two_ranks):
    monkeypatch.chdir(tmp_path)
    arguments = [*DEMO, "--model.init_args.lr_scheduler=null", "--model.init_args.optimizer.init_args.lr=0.1"]
    first, second = (o.value for o in two_ranks.run(spoiled_on_one_rank, [*arguments, *DDP], spoiled))
    assert first is not None
    assert first == second
    assert first.startswith(f"step 2: rank {spoiled}: ")
    (saved,) = tmp_path.rglob("last_good.ckpt")
    assert torch.load(saved, weights_only=True)["global_step"] == 2
