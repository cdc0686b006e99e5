import pytest
import torch

from eigenscope.nn.batteries import battery_scores
from eigenscope.nn.batteries.battery_array import BatteryArray
from eigenscope.nn.batteries.battery_scores import cross_evaluate

LABELS = torch.tensor([0, 2, 2, 3, 0, 2, 3])


@pytest.fixture
def array():
    torch.manual_seed(0)
    return BatteryArray(5, num_points=6, hidden=8)


@pytest.fixture
def images():
    return torch.randn(7, 3, 8, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("numbers", [1, 5_000, 20_000, 2**22])  # one pair at a time, two, all batteries, everything
def test_errors_are_those_of_each_battery_on_each_label(array, images, monkeypatch, numbers):
    monkeypatch.setattr(battery_scores, "_NUMBERS", numbers)
    errors = cross_evaluate(array, images, LABELS, 4)
    assert errors.shape == (5, 4)
    assert errors.dtype == torch.float64
    assert not errors.requires_grad
    assert errors[:, 1].isnan().all()
    for k in range(5):
        battery = array.battery(k)
        for label in (0, 2, 3):
            own = images[label == LABELS]
            error = (battery.reconstruct(own) - own).square().mean().double()
            torch.testing.assert_close(errors[k, label], error, rtol=1e-5, atol=0)


def test_a_chunk_is_bounded(array, images, monkeypatch):
    shapes = []
    forward = BatteryArray.forward

    def counting(self, shown):
        shapes.append(self.num_batteries * len(shown))
        return forward(self, shown)

    monkeypatch.setattr(BatteryArray, "forward", counting)
    monkeypatch.setattr(battery_scores, "_NUMBERS", 5_000)
    cross_evaluate(array, images, LABELS, 4)
    assert sum(shapes) == 5 * 7
    assert max(shapes) == 3  # of 6 patches and 256 numbers a patch


def test_large_errors_do_not_overflow(array, images):
    errors = cross_evaluate(array, images * 1e18, LABELS, 4)
    assert errors[:, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:6], r"got \(7, 3, 8, 12\) and \(6,\)"),
        (LABELS.float(), "torch.float32"),
        (LABELS - 1, "labels must be in 0 to 3, got -1 to 2"),
        (LABELS + 1, "labels must be in 0 to 3, got 1 to 4"),
    ],
)
def test_wrong_labels_are_named(array, images, labels, message):
    with pytest.raises(ValueError, match=message):
        cross_evaluate(array, images, labels, 4)
