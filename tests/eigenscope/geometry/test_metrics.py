import pytest
import torch
import torch.nn.functional as F

from eigenscope.geometry import CVEstimate, effective_rank, volume_cv
from eigenscope.geometry.metrics import EffectiveRank, VolumeCV
from eigenscope.noise import stream_key


def unit_rows(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(0)), dim=-1)


def drawn_at(seed: int, update: int, rank: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(stream_key(seed, update, rank))


def test_mean_and_error_over_matrices_of_unequal_updates():
    points = unit_rows(10, 32, 8)
    metric = VolumeCV(num_simplices=50, seed=3)
    metric.update(points[:7])
    metric.update(points[7:9].reshape(2, 1, 32, 8))
    metric.update(points[9])
    parts = [
        volume_cv(points[:7], 50, drawn_at(3, 1)),
        volume_cv(points[7:9], 50, drawn_at(3, 2)),
        volume_cv(points[9:], 50, drawn_at(3, 3)),
    ]
    result = metric.compute()
    assert isinstance(result, CVEstimate)
    torch.testing.assert_close(result.cv, torch.cat([part.cv for part in parts]).mean())
    errors = torch.cat([part.standard_error for part in parts])
    torch.testing.assert_close(result.standard_error, errors.square().sum().sqrt() / 10)


def test_several_updates_agree_with_one_within_the_error():
    points = unit_rows(64, 32, 8)
    once, often = VolumeCV(), VolumeCV()
    once.update(points)
    for part in points.split(10):
        often.update(part)
    a, b = once.compute(), often.compute()
    assert 0 < abs(a.cv - b.cv) < 4 * (a.standard_error**2 + b.standard_error**2).sqrt()
    torch.testing.assert_close(a.standard_error, b.standard_error, rtol=0.05, atol=0)


def test_the_error_is_the_spread_over_seeds():
    points = unit_rows(6, 24, 16)
    results = []
    for seed in range(200):
        metric = VolumeCV(seed=seed)
        metric.update(points)
        results.append(torch.stack(metric.compute()))
    cvs, errors = torch.stack(results).unbind(1)
    assert errors.mean().item() == pytest.approx(cvs.std().item(), rel=0.15)


def test_reset_restarts_and_forward_draws_like_update():
    points = unit_rows(4, 16, 8)
    metric = VolumeCV(num_simplices=20)
    runs = []
    for step in (metric.update, metric):
        returned = [step(points) for _ in range(3)]
        metric.update(points)
        runs.append(metric.compute())
        metric.reset()
    torch.testing.assert_close(runs[1], runs[0])
    for number, batch in enumerate(returned, 1):
        torch.testing.assert_close(batch.cv, volume_cv(points, 20, drawn_at(0, number)).cv.mean())


def test_ranks_draw_apart(monkeypatch):
    points = unit_rows(4, 16, 8)
    metric = VolumeCV(num_simplices=20)
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_rank", lambda: 1)
        metric.update(points)
    torch.testing.assert_close(metric.compute().cv, volume_cv(points, 20, drawn_at(0, 1, rank=1)).cv.mean())


@pytest.mark.parametrize("metric", [VolumeCV, EffectiveRank])
def test_states_of_two_ranks_add_up(metric):
    ranks = [metric(), metric()]
    ranks[0].update(unit_rows(2, 16, 8).abs())
    ranks[1].update(unit_rows(3, 16, 8).abs())
    states = [{name: getattr(rank, name).clone() for name in rank._defaults} for rank in ranks]
    ranks[0].merge_state(ranks[1])
    for name in ranks[0]._defaults:
        assert torch.equal(getattr(ranks[0], name), states[0][name] + states[1][name]), name
    assert ranks[0].count == (5 if metric is VolumeCV else 5 * 16)


def test_effective_rank_over_updates():
    S = unit_rows(9, 2, 8).abs()
    metric = EffectiveRank()
    for part in (S[:4], S[4:8], S[8]):
        metric.update(part)
    torch.testing.assert_close(metric.compute(), effective_rank(S).mean())
    assert not metric.full_state_update


def test_bad_input():
    with pytest.raises(ValueError, match="num_simplices must be at least 2, got 1"):
        VolumeCV(num_simplices=1)
    with pytest.raises(ValueError, match="V = 4"):
        VolumeCV().update(torch.ones(4, 8))
