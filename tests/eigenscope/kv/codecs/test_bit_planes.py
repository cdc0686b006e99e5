import pytest
import torch

from eigenscope.kv.codecs.bit_planes import pack_planes, unpack_planes


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 64, 65])
@pytest.mark.parametrize("rows", [[5], [5, 5], [6, 4, 4, 1], [9, 8, 7, 6, 5, 4, 3, 2], [3] * 8, [0], [2, 0, 0]])
def test_round_trip_is_exact_and_nothing_is_wasted_but_the_last_byte(rows, tokens):
    generator = torch.Generator().manual_seed(tokens)
    widths = torch.tensor([sum(count > i for count in rows) for i in range(rows[0])], dtype=torch.int64)
    limits = (2**widths)[:, None].expand(2, 3, -1, tokens)
    codes = (torch.rand(limits.shape, generator=generator) * limits).to(torch.uint8)
    planes = pack_planes(codes, rows)
    assert planes.dtype == torch.uint8
    assert planes.shape == (2, 3, int(widths.sum()), -(-tokens // 8))
    assert torch.equal(unpack_planes(planes, rows, tokens), codes)


def test_the_layout_is_bit_by_bit_from_the_lowest():
    codes = torch.tensor([[3, 0, 2, 1, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.uint8)
    packed = pack_planes(codes, [2, 1])
    assert packed.tolist() == [[0b1001, 1], [0b11, 0], [0b101, 0]]


def test_bad_input_is_named():
    codes = torch.zeros(3, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="uint8"):
        pack_planes(codes.int(), [3])
    for rows in ([2], [3, 4], [], [3] * 9, [3, -1]):
        with pytest.raises(ValueError, match="rows must be"):
            pack_planes(codes, rows)
    with pytest.raises(ValueError, match="planes must be"):
        unpack_planes(pack_planes(codes, [3, 1]), [3, 1], 9)
