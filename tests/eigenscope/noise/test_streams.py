import torch

from eigenscope.noise import normal, random_bits, stream_key, uniform
from eigenscope.noise.streams import _GAMMA, _mix


def test_the_mixer_is_splitmix64():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    steps = 1234567 + torch.arange(1, 5) * _GAMMA
    assert [int(word) % 2**64 for word in _mix(steps)] == published


def test_a_sample_does_not_depend_on_its_batch():
    key = stream_key(3, 1)
    whole = random_bits(key, torch.arange(50), 7)
    assert torch.equal(random_bits(key, torch.tensor([49, 3]), 7), whole[[49, 3]])
    assert torch.equal(random_bits(key, torch.arange(50), 4), whole[:, :4])


def test_keys_depend_on_every_part_and_their_order():
    keys = {stream_key(*parts) for parts in [(0,), (0, 0), (0, 1), (1, 0), (2**63,), (-1,), (1, 0, 0)]}
    assert len(keys) == 7


def test_moments_and_independence():
    indices = torch.arange(100_000)
    u = uniform(stream_key(0), indices, 6).double()
    assert 0 < u.min() < u.max() < 1
    n = normal(stream_key(1), indices, 5).double()
    for sample, mean, variance, fourth in ((u, 1 / 2, 1 / 12, 1 / 80), (n, 0, 1, 3)):
        centred = sample - mean
        assert (sample.mean(0) - mean).abs().max() < 5 * (variance / 1e5) ** 0.5
        assert (centred.square().mean(0) / variance - 1).abs().max() < 0.02
        assert (centred.pow(4).mean(0) / fourth - 1).abs().max() < 0.05
        assert torch.corrcoef(sample.T).triu(1).abs().max() < 5 / 1e5**0.5
    neighbours = torch.stack([u[:-1, 0], u[1:, 0]])
    assert torch.corrcoef(neighbours)[0, 1].abs() < 5 / 1e5**0.5
