"""What is logged in half precision is what is logged in single, to the rounding of the network's output."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from eigenscope.adapters.torchmetrics_names import restore_metric
from eigenscope.geometry.metrics import EffectiveRank, VolumeCV
from eigenscope.lightning_modules import ImageClassificationModule
from eigenscope.lightning_modules.metrics import CrossErrors, FractionVarianceUnexplained, GroupedMean, MeanLoss
from eigenscope.nn import DeiT

HALVES = [torch.bfloat16, torch.float16]
LABELS = torch.tensor([0, 1, 1, 0])


def number(computed):
    """The one number of a metric whose values are all equal."""
    values = computed.values() if isinstance(computed, dict) else [computed]
    values = [value.flatten() for value in values]
    assert len(torch.cat(values).unique()) == 1
    return values[0][0]


CASES = {  # a metric, what it is given 400 times in half precision, and its mean
    "MeanLoss": (MeanLoss, (torch.ones(()), 256), 1.0),
    "GroupedMean": (lambda: GroupedMean(2), (torch.ones(4), LABELS), 1.0),
    "CrossErrors": (lambda: CrossErrors(3, 2), (torch.ones(3, 2), LABELS), 1.0),
    "FractionVarianceUnexplained": (
        lambda: FractionVarianceUnexplained(2),
        (torch.tensor([[2.0], [2], [0], [0]]), torch.tensor([[1.0], [1], [-1], [-1]]), LABELS),
        1.0,
    ),
    "EffectiveRank": (EffectiveRank, (torch.ones(4, 3),), 3.0),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", CASES)
def test_a_mean_over_many_batches_is_the_mean(name, dtype):
    make, given, expected = CASES[name]
    metric = torch.nn.ModuleList([make()]).to(dtype)[0]
    given = [x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in given]
    for _ in range(400):  # a sum in bfloat16 ends at 256 of them
        metric.update(*given)
    computed = metric.compute()
    torch.testing.assert_close(float(number(computed[0] if name == "CrossErrors" else computed)), expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_cv_over_many_batches_is_their_mean(dtype):
    points = torch.nn.functional.normalize(torch.randn(8, 6, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    points = points.to(dtype)
    single, half = VolumeCV(num_simplices=8), torch.nn.ModuleList([VolumeCV(num_simplices=8)]).to(dtype)[0]
    for _ in range(100):
        single.update(points.float())
        half.update(points)
    torch.testing.assert_close(half.compute(), single.compute(), rtol=0, atol=0)


def test_a_restored_state_keeps_the_dtype_that_sums_have_now():
    metric = MeanLoss()
    restore_metric(metric, {"total": torch.tensor(256.0, dtype=torch.bfloat16), "count": torch.tensor(256)}, 1)
    for _ in range(256):
        metric.update(torch.ones((), dtype=torch.bfloat16), 1)
    assert metric.compute() == 1.0


def test_500_validation_batches(tmp_path):
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.rand(4000, 3, 8, 8, generator=generator), torch.arange(4000) % 100)

    def validated(precision):
        torch.manual_seed(0)
        net = DeiT(image_size=8, patch_size=8, width=8, depth=1, num_heads=1, num_classes=100, dropout=0.0)
        module = ImageClassificationModule(net, torch.optim.SGD)
        trainer = Trainer(
            default_root_dir=tmp_path,
            accelerator="cpu",
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        return trainer.validate(module, DataLoader(data, 8), verbose=False)[0]

    logged, exact = validated("bf16-true"), validated("32-true")
    assert abs(logged["val/loss"] - exact["val/loss"]) < torch.finfo(torch.bfloat16).eps  # logits are about 1
    assert abs(logged["val/acc5"] - exact["val/acc5"]) < 0.01  # 1 % of the samples may change sides
