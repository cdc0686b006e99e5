import pytest
import torch
from scipy import stats

from eigenscope.noise import random_bits, stream_key, uniform
from eigenscope.noise.streams import _GAMMA, _ROUNDS, Streams, _mix_, _shift_right, _signed


def normal(key, indices, count):
    return Streams(key, indices).normal(count)


def test_the_mixer_is_splitmix64():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    steps = 1234567 + torch.arange(1, 5) * _signed(_GAMMA)
    assert [int(word) % 2**64 for word in _mix_(steps)] == published


def test_a_sample_does_not_depend_on_its_batch():
    key = stream_key(3, 1)
    whole = random_bits(key, torch.arange(50), 7)
    assert torch.equal(random_bits(key, torch.tensor([49, 3]), 7), whole[[49, 3]])
    assert torch.equal(random_bits(key, torch.arange(50), 4), whole[:, :4])


def test_keys_depend_on_every_part_and_their_order():
    keys = {stream_key(*parts) for parts in [(0,), (0, 0), (0, 1), (1, 0), (2**63,), (-1,), (1, 0, 0)]}
    assert len(keys) == 7


def test_moments_and_independence():
    u = uniform(stream_key(0), torch.arange(100_000), 6).double()
    assert 0 < u.min() < u.max() < 1
    centred = u - 1 / 2
    assert centred.mean(0).abs().max() < 5 * (1 / 12 / 1e5) ** 0.5
    assert (centred.square().mean(0) * 12 - 1).abs().max() < 0.02
    assert (centred.pow(4).mean(0) * 80 - 1).abs().max() < 0.05
    assert torch.corrcoef(u.T).triu(1).abs().max() < 5 / 1e5**0.5
    neighbours = torch.stack([u[:-1, 0], u[1:, 0]])
    assert torch.corrcoef(neighbours)[0, 1].abs() < 5 / 1e5**0.5


def test_a_number_does_not_depend_on_its_batch():
    key = stream_key(4)
    for draw in (uniform, normal):
        for count in (1, 5, 6, 4099):
            whole = draw(key, torch.arange(120), count)
            assert whole.shape == (120, count)
            assert torch.equal(draw(key, torch.tensor([119, 3]), count), whole[[119, 3]])


def test_normal_numbers():
    numbers = normal(stream_key(5), torch.arange(2000), 501).double()
    assert stats.kstest(numbers.flatten()[::5], stats.norm.cdf).pvalue > 1e-3
    assert numbers.pow(4).mean() == pytest.approx(3, abs=0.03)
    for values in (numbers, numbers.square()):
        assert torch.corrcoef(values.T).triu(1).abs().max() < 5.5 / 2000**0.5


def test_reading_on_gives_new_numbers():
    streams = Streams(stream_key(6), torch.arange(3))
    read = torch.cat([streams.bits(4), streams.bits(3)], 1)
    assert torch.equal(read, random_bits(stream_key(6), torch.arange(3), 7))


def test_both_implementations_of_the_mixer_agree():
    words = random_bits(stream_key(7), torch.arange(100), 50)
    generic = words.clone()
    for bits, factor in _ROUNDS:
        generic ^= _shift_right(generic, bits)
        generic *= _signed(factor)
    assert torch.equal(_mix_(words), generic ^ _shift_right(generic, 31))
