import pytest
import torch

from eigenscope.callbacks.spectra.battery_container import battery_table


def test_each_noise_has_its_best_battery():
    errors = torch.tensor([[1.0, 5.0, torch.nan], [2.0, 4.0, torch.nan], [torch.nan, 0.25, torch.inf]])
    text = battery_table(errors, ["pink", "brown", "cauchy"], [("pink",), (), ("pink", "brown")])
    pink, brown, cauchy = (line.split() for line in text.splitlines()[2:])
    assert pink == ["pink", "0", "pink", "1", "1"]
    assert brown == ["brown", "2", "pink", "+", "brown", "0.25", "4"]
    assert cauchy == ["cauchy", "none"]


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"got \(2, 2\), 2 mixtures and 1 names"):
        battery_table(torch.ones(2, 2), ["pink"], [(), ()])
    with pytest.raises(ValueError, match="K >= 1"):
        battery_table(torch.ones(0, 1), ["pink"], [])
