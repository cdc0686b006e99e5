import pytest

from eigenscope.nn import FreeMatrix


def test_is_one_matrix_of_zeros():
    net = FreeMatrix(3, 5)
    assert {name: tuple(p.shape) for name, p in net.named_parameters()} == {"weight": (3, 5)}
    assert not net.weight.any()
    assert net() is net.weight


@pytest.mark.parametrize(("sizes", "name"), [((0, 5), "rows"), ((3, -1), "columns")])
def test_sizes_are_positive(sizes, name):
    with pytest.raises(ValueError, match=rf"{name} must be at least 1, got {min(sizes)}"):
        FreeMatrix(*sizes)
