import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from eigenscope.callbacks import EpochTable
from eigenscope.datamodules import HeavyTailedNoiseDataModule
from eigenscope.noise import NOISE_TYPES, Curriculum
from eigenscope.results import MonitoredMetric, scored

TIERS = [["gaussian"], ["salt_pepper"], ["laplace"]]
SCORES = [5.0, 4.0, 4.5, 4.2, 9.0, 8.0, 8.5, 8.5, 7.0, 6.0]  # stalls for two epochs twice


class Told(LightningModule):
    """Its validation scores are those of the list, and its batches are remembered."""

    def __init__(self, scores=SCORES):
        super().__init__()
        self.scores = scores
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, set(batch[1].tolist())))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/mse", self.scores[self.current_epoch])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/mse"}}


def noise(curriculum, types=TIERS):
    return HeavyTailedNoiseDataModule(
        types=[name for tier in types for name in tier],
        image_size=4,
        samples_per_epoch=6,
        val_samples_per_type=1,
        batch_size=6,
        num_workers=0,
        curriculum=curriculum,
    )


def fit(tmp_path, curriculum, *callbacks, module=None, data=None, ckpt_path=None, epochs=10, **options):
    data = data or noise(curriculum)
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    module = module or Told()
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return trainer, module


def best(tmp_path):
    return ModelCheckpoint(tmp_path, "best", monitor="val/mse", enable_version_counter=False)


def test_patience_unlocks_and_bests_restart(tmp_path):
    curriculum = Curriculum(patience=2, tiers=TIERS)
    table = EpochTable(MonitoredMetric("val/mse", "min", percent=False))
    checkpoint, stopping = best(tmp_path), EarlyStopping("val/mse", patience=4)
    trainer, module = fit(tmp_path, curriculum, table, stopping, checkpoint)
    assert curriculum.unlocked_at.tolist() == [0, 4, 8]
    assert [len(types) for _, types in module.seen] == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    assert checkpoint.best_model_score == stopping.best_score == 6.0  # and not 4
    assert torch.load(checkpoint.best_model_path, weights_only=True)["epoch"] == 9
    assert scored(table.epochs, table.monitor) == [(7.0, 9), (6.0, 10)]
    assert [row.restarts for row in table.epochs] == [number in (4, 8) for number in range(10)]
    assert trainer.callback_metrics["curriculum/types"] == 3
    assert module.lr_schedulers().best == 6.0
    assert not any(type(callback).__name__ == "CurriculumPacing" for callback in trainer.callbacks)


def test_fixed_epochs(tmp_path):
    _, module = fit(tmp_path, Curriculum(epochs=[1, 3], tiers=TIERS), epochs=4)
    assert [len(types) for _, types in module.seen] == [1, 2, 2, 3]


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("stopped", [4, 5])
def test_a_resumed_run_goes_on_in_its_curriculum(tmp_path, stopped):
    checkpoint = best(tmp_path)
    last, then = (ModelCheckpoint(tmp_path, "last", enable_version_counter=False) for _ in range(2))
    fit(tmp_path, Curriculum(patience=2, tiers=TIERS), checkpoint, last, epochs=stopped)
    curriculum = Curriculum(patience=2, tiers=TIERS)
    going_on = best(tmp_path)
    _, module = fit(tmp_path, curriculum, going_on, then, ckpt_path=last.best_model_path)
    assert curriculum.unlocked_at.tolist() == [0, 4, 8]
    assert [len(types) for _, types in module.seen] == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3][stopped:]
    assert going_on.best_model_score == 6.0


def test_a_score_that_is_not_logged(tmp_path):
    with pytest.raises(ValueError, match="monitor 'val/loss' of the curriculum was not logged; there are: val/mse"):
        fit(tmp_path, Curriculum(patience=1, monitor="val/loss", tiers=TIERS), epochs=1)


def test_a_tier_is_unlocked_once_however_often_an_epoch_is_validated(tmp_path):
    curriculum = Curriculum(patience=2, tiers=TIERS)
    data = noise(curriculum)
    data.samples_per_epoch = 24  # four batches, each followed by a validation that is no better
    fit(tmp_path, curriculum, module=Told([5.0] * 3), data=data, epochs=3, val_check_interval=1)
    assert curriculum.unlocked_at.tolist() == [0, 1, 2]


def test_every_fit_begins_anew(tmp_path):
    curriculum = Curriculum(patience=2, tiers=TIERS)
    data = noise(curriculum)
    fit(tmp_path, curriculum, data=data)

    class Failing(Told):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path / "a", curriculum, data=data, module=Failing())
    _, module = fit(tmp_path / "b", curriculum, data=data)
    assert [len(types) for _, types in module.seen] == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize(
    "other", [Curriculum(epochs=[2, 3], tiers=TIERS), Curriculum(patience=1, tiers=[["gaussian", "laplace"], ["pink"]])]
)
def test_another_curriculum_is_not_resumed(tmp_path, other):
    last = ModelCheckpoint(tmp_path, "last", enable_version_counter=False)
    fit(tmp_path, Curriculum(epochs=[1, 3], tiers=TIERS), last, epochs=2)
    types = [[NOISE_TYPES[kind] for kind in tier] for tier in other.tiers]
    then = ModelCheckpoint(tmp_path, "last", enable_version_counter=False)
    with pytest.raises(ValueError, match="the checkpoint's curriculum unlocks its tiers at"):
        fit(tmp_path, other, then, data=noise(other, types), ckpt_path=last.best_model_path)


def test_the_scoreboard_tells_over_how_many_types(tmp_path):
    data = noise(Curriculum(epochs=[1, 5], tiers=TIERS))
    assert noise(None).protocol == "3 types"
    fit(tmp_path, data.curriculum, data=data, epochs=2)
    assert data.protocol == "2 types"
