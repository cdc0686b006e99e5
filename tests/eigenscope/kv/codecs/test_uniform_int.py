import pytest
import torch

from eigenscope.kv import UniformInt, nbytes, relative_error


def through(codec: UniformInt, X: torch.Tensor) -> torch.Tensor:
    state = codec.fit(X)
    return codec.decode(codec.encode(X, state), state)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("axis", "dim"), [("token", -1), ("channel", -2)])
def test_every_entry_is_within_half_a_step(bits, axis, dim):
    X = 5 + torch.randn(2, 3, 37, 16, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    low, high = X.amin(dim, keepdim=True), X.amax(dim, keepdim=True)
    step = (high - low) / (2**bits - 1)
    decoded = through(UniformInt(bits, axis), X)
    assert ((decoded - X).abs() <= step * 0.500001).all()
    expected = low + ((X - low) / step).round() * step
    torch.testing.assert_close(decoded, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("axis", "dim"), [("token", -1), ("channel", -2)])
def test_stretches_are_whole_ones_of_their_length(axis, dim):
    X = torch.randn(2, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    decoded = through(UniformInt(3, axis, stretch=15), X)
    parts = [through(UniformInt(3, axis), part.contiguous()) for part in X.split(15, dim)]
    torch.testing.assert_close(decoded, torch.cat(parts, dim), atol=1e-12, rtol=0)
    assert torch.equal(through(UniformInt(3, axis, stretch=99), X), through(UniformInt(3, axis), X))


def test_channels_of_unequal_size_want_stretches_along_tokens():
    X = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, 2, 16)
    small = X[..., :4]
    by_token, by_channel = (through(UniformInt(4, axis), X)[..., :4] for axis in ("token", "channel"))
    assert relative_error(small, by_channel, dim=None) < 0.15
    assert relative_error(small, by_token, dim=None) > 0.5


def test_each_option_changes_what_is_held():
    X = torch.randn(1, 2, 64, 32)

    def held(codec: UniformInt) -> int:
        return nbytes(codec.encode(X, codec.fit(X)))

    integers = 2 * 64 * 32 // 8
    assert held(UniformInt(4)) == 4 * integers + 2 * 64 * 8
    assert held(UniformInt(3)) == 3 * integers + 2 * 64 * 8
    assert held(UniformInt(4, "channel")) == 4 * integers + 2 * 32 * 8
    assert held(UniformInt(4, "channel", 16)) == 4 * integers + 2 * 32 * 4 * 8


def test_bad_options_are_named():
    for bits in (0, 9):
        with pytest.raises(ValueError, match="bits must be from 1 to 8"):
            UniformInt(bits)
    with pytest.raises(ValueError, match="axis must be 'token' or 'channel', got 'head'"):
        UniformInt(4, "head")
    with pytest.raises(ValueError, match="stretch must be at least 1, got 0"):
        UniformInt(4, stretch=0)
