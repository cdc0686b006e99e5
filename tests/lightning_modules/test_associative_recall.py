import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import nn

from eigenscope.data import RecallTask
from eigenscope.datamodules import AssociativeRecallDataModule
from eigenscope.lightning_modules import AssociativeRecallModule
from eigenscope.nn import CausalTransformer

TASK = RecallTask(context=4, pairs=2, queries=2, keys=4, values=4, fillers=1)


def fit(tmp_path, module, data, **options):
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1} | options,
    )
    trainer.fit(module, datamodule=data)
    return trainer


def data(**options):
    given = {"task": TASK, "samples_per_epoch": 64, "val_samples": 24, "batch_size": 16, "num_workers": 0}
    return AssociativeRecallDataModule(**given | options)


def network(seed=0, vocabulary=9):
    torch.manual_seed(seed)
    return CausalTransformer(vocabulary, width=32, num_heads=2, mlp_width=32)


def test_it_learns_to_recall(tmp_path):
    module = AssociativeRecallModule(network(), lambda named: torch.optim.AdamW(named, lr=5e-3, betas=(0.9, 0.95)))
    trainer = fit(tmp_path, module, data(samples_per_epoch=64 * 300, batch_size=64, val_samples=256))
    assert trainer.callback_metrics["val/recall"] > 0.9  # chance is 1/4, and 1/2 of the two that are in the context
    assert trainer.callback_metrics["val/loss"] < 0.4


def test_what_is_logged_is_loss_and_recall_of_the_answers(tmp_path):
    net = network()
    module = AssociativeRecallModule(net, lambda named: torch.optim.SGD(named, lr=0.0))
    source = data()
    trainer = fit(tmp_path, module, source)
    for stage in ("train", "val"):
        loader = getattr(source, f"{stage}_dataloader")()
        tokens, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
        logits, answers = net(tokens)[:, 4:].flatten(0, 1), labels[:, 4:].flatten()
        expected = F.cross_entropy(logits, answers)
        torch.testing.assert_close(trainer.callback_metrics[f"{stage}/loss"], expected)
        recall = (logits.argmax(-1) == answers).float().mean()
        torch.testing.assert_close(trainer.callback_metrics[f"{stage}/recall"], recall)
    predicted = module.predict_step((tokens, labels), 0)
    assert torch.equal(predicted["tokens"], net(tokens).argmax(-1))
    assert torch.equal(predicted["labels"], labels)


def test_a_vocabulary_that_is_too_small_is_named(tmp_path):
    module = AssociativeRecallModule(network(vocabulary=8), torch.optim.SGD)
    with pytest.raises(ValueError, match="vocabulary of at least 9, the data's, got 8"):
        fit(tmp_path, module, data())
    with pytest.raises(ValueError, match="integer attribute vocabulary, Linear has None"):
        AssociativeRecallModule(nn.Linear(2, 2), torch.optim.SGD)
    with pytest.raises(ValueError, match="lr_interval"):
        AssociativeRecallModule(network(), torch.optim.SGD, lr_interval="week")
