import pytest
import torch
from torch import nn

from eigenscope.nn import PatchSVAE
from eigenscope.nn.autoencoders.patches import fold_patches, unfold_patches

SMALL = {"num_points": 12, "dim": 4, "patch_size": 4, "hidden": 24, "depth": 1}


def images(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def close_gates(net):
    for layer in net.cross_attention:
        nn.init.constant_(layer.gate, -1e4)


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [({}, 16_942_419), ({"num_points": 48, "dim": 4, "patch_size": 4, "hidden": 384}, 2_557_539)],
)
def test_published_parameter_counts(arguments, parameters):
    assert sum(p.numel() for p in PatchSVAE(**arguments).parameters()) == parameters


def test_patches_are_cut_where_they_lie_and_put_back():
    x = images(2, 3, 8, 12)
    patches = unfold_patches(x, 4)
    assert torch.equal(patches[1, 4], x[1, :, 4:8, 4:8].flatten())  # second row, second column
    assert torch.equal(fold_patches(patches, (2, 3), 4), x)


def test_the_code_is_the_svd_of_points_on_a_sphere():
    torch.manual_seed(0)
    net = PatchSVAE(**SMALL)
    code = net.encode(images(2, 3, 8, 12))
    assert code.points.shape == (2, 6, 12, 4)
    assert code.grid == (2, 3)
    torch.testing.assert_close(code.points.norm(dim=-1), torch.ones(2, 6, 12))
    torch.testing.assert_close(code.singular_values, torch.linalg.svdvals(code.points))
    torch.testing.assert_close(code.singular_values.square().sum(-1), torch.full((2, 6), 12.0))
    U, _, Vh = torch.linalg.svd(code.points.double(), full_matrices=False)
    coordinated = U @ torch.diag_embed((code.singular_values * code.gains).double()) @ Vh
    torch.testing.assert_close(code.decoded_points.double(), coordinated, rtol=1e-4, atol=1e-4)
    assert (code.gains - 1).abs().max() <= 0.2
    assert (code.gains - 1).abs().max() > 0


def test_closed_gates_pass_the_points_through():
    torch.manual_seed(0)
    net = PatchSVAE(**SMALL).double()
    close_gates(net)
    code = net.encode(images(3, 3, 16, 16, dtype=torch.float64))
    assert (code.decoded_points - code.points).abs().max() < 1e-12


def test_cross_attention_sees_the_patches_of_its_own_image_only():
    torch.manual_seed(0)
    net = PatchSVAE(**SMALL)
    x = images(2, 3, 8, 8)
    changed = x.clone()
    changed[0, :, :4, :4] *= 3
    with torch.no_grad():
        before, after = net.encode(x), net.encode(changed)
    assert not torch.equal(before.gains[0, 3], after.gains[0, 3])  # another patch of the image
    torch.testing.assert_close(before.gains[1], after.gains[1])


def test_smoothing_is_the_identity_at_first():
    torch.manual_seed(0)
    net = PatchSVAE(**SMALL)
    x = images(1, 3, 8, 8)
    assert torch.equal(net.smoothing(x), x)


def test_gradients_reach_everything_and_are_finite():
    torch.manual_seed(0)
    net = PatchSVAE(**SMALL)
    reconstruction, _ = net(images(2, 3, 8, 8))
    nn.init.normal_(net.smoothing.layers[2].weight)
    reconstruction, _ = net(images(2, 3, 8, 8))
    reconstruction.square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_gradient_is_finite_with_equal_singular_values():
    torch.manual_seed(0)
    net = PatchSVAE(num_points=4, dim=4, patch_size=4, hidden=8, depth=0)
    last = net.encoder[-1]
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.eye(4).flatten())  # M = I: four equal singular values
    reconstruction, code = net(images(2, 3, 8, 8))
    assert torch.equal(code.singular_values, torch.ones(2, 4, 4))
    reconstruction.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    assert last.weight.grad.abs().max() > 0


def test_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    net = PatchSVAE(num_points=6, dim=2, patch_size=2, hidden=5, depth=1).double()
    nn.init.normal_(net.smoothing.layers[2].weight)
    assert torch.autograd.gradcheck(lambda x: net(x)[0], (images(1, 3, 4, 4, dtype=torch.float64).requires_grad_(),))


def test_fp32_gram_matrix_is_close():
    torch.manual_seed(0)
    net = PatchSVAE(**SMALL)
    x = images(4, 3, 16, 16)
    with torch.no_grad():
        exact = net.encode(x).singular_values
        net.gram_precision = "fp32"
        error = ((net.encode(x).singular_values - exact) / exact).abs()
    # λ = σ² is off by γ_V Σσ² from the sums of V products, and by about 8 D u λ₁ from the eigensolver; σ by half of it
    points, dim = SMALL["num_points"], SMALL["dim"]
    bound = (points + 8 * dim) * 2.0**-24 * exact.square().sum(-1, keepdim=True) / (2 * exact.square())
    assert error.max() > 0
    assert (error < bound).all()


def test_autocast_leaves_the_spectrum_in_fp32():
    torch.manual_seed(0)
    net = PatchSVAE(**SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reconstruction, code = net(images(2, 3, 8, 8))
    assert code.points.dtype == code.singular_values.dtype == code.gains.dtype == torch.float32
    assert reconstruction.dtype == torch.bfloat16
    torch.testing.assert_close(code.points.norm(dim=-1), torch.ones(2, 4, 12))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_throughout(dtype):
    torch.manual_seed(0)
    net = PatchSVAE(**SMALL).to(dtype)
    reconstruction, code = net(images(2, 3, 8, 8).to(dtype))
    assert reconstruction.dtype == dtype
    assert code.gains.dtype == torch.promote_types(dtype, torch.float32)
    reconstruction.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize("tile", [4, 8, 12, 100])
def test_tiles_make_up_the_image(tile):
    torch.manual_seed(0)
    net = PatchSVAE(**SMALL | {"num_cross": 0})  # which alone reaches beyond a tile
    nn.init.normal_(net.smoothing.layers[2].weight)
    x = images(2, 3, 16, 20)
    torch.testing.assert_close(net.reconstruct(x, tile=tile), net.reconstruct(x), rtol=1e-5, atol=1e-5)
    tops, lefts, codes = zip(*net.encode_tiled(x, tile), strict=True)
    assert (tops[0], lefts[0]) == (0, 0)
    assert sum(code.points.shape[1] for code in codes) == 20


def test_sizes_need_not_be_those_of_training():
    torch.manual_seed(0)
    net = PatchSVAE(**SMALL, image_size=8)
    assert net.reconstruct(images(1, 3, 24, 12)).shape == (1, 3, 24, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 30}, "image size must be a multiple of patch_size 4, got 30×30"),
        ({"dim": 6, "num_heads": 4}, "dim must be a multiple of num_heads, got dim 6 and 4 heads"),
        ({"dim": 10, "num_points": 10}, "dim must be a multiple of num_heads, got dim 10 and 4 heads"),
        ({"num_points": 3}, "num_points must be at least dim, 4, got 3"),
        ({"depth": -1}, "depth must be at least 0, got -1"),
        ({"gram_precision": "tf32"}, "gram_precision must be one of fp64, fp32, got 'tf32'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PatchSVAE(**SMALL | arguments)


def test_bad_inputs():
    net = PatchSVAE(**SMALL)
    with pytest.raises(ValueError, match="multiple of patch_size 4, got 8×9"):
        net(images(1, 3, 8, 9))
    with pytest.raises(ValueError, match=r"images must be real \(B, 3, H, W\), got torch.uint8"):
        net(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got torch.float32 of shape \(1, 1, 8, 8\)"):
        net(images(1, 1, 8, 8))
    with pytest.raises(ValueError, match="tile must be a multiple of 4, the patch size, got 6"):
        net.reconstruct(images(1, 3, 8, 8), tile=6)
