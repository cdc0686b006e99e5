from collections.abc import Iterator

import numpy as np
import pytest
import torch
from emerging_optimizers.soap import SOAP
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from eigenscope.linalg import emulate_tf32, gram_svd, round_to_tf32, sort_eigenbasis


@pytest.fixture(autouse=True)
def _precision_as_it_was() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """The product of the rounded operands, without rounding of its own."""
    return round_to_tf32(A).double() @ round_to_tf32(B).double()


def assert_is(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to float32 accumulation, a hundred times finer than TF32."""
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def nearest(x: np.ndarray) -> np.ndarray:
    """The nearest multiple of the last bit that TF32 keeps, ties to even, in float64."""
    wide = x.astype(np.float64)
    exponent = np.maximum(np.frexp(wide)[1] - 1, -126)
    step = np.exp2(exponent - 10.0)
    with np.errstate(over="ignore"):
        return (np.rint(wide / step) * step).astype(np.float32)


def bits_of(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32)


def test_every_exponent_rounds_to_the_nearest_and_ties_to_even():
    generator = np.random.default_rng(0)
    exponents = np.arange(255, dtype=np.uint32)[:, None]  # 0 are the subnormals, 255 would be infinity and NaN
    kept = np.concatenate([generator.integers(0, 1 << 10, (255, 40)), np.tile([0, 1, 1022, 1023], (255, 1))], axis=1)
    dropped = [0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF]  # 0x1000 is the tie
    mantissas = np.concatenate(
        [kept << 13 | tail for tail in dropped] + [generator.integers(0, 1 << 23, (255, 100))], axis=1
    ).astype(np.uint32)
    bits = exponents << 23 | mantissas
    x = np.concatenate([bits, bits | np.uint32(1 << 31)]).view(np.float32)
    expected = nearest(x)
    rounded = round_to_tf32(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(rounded.view(np.uint32), expected.view(np.uint32))
    assert (np.abs(rounded[254]) == np.inf).any()  # the largest exponent
    assert (rounded.view(np.uint32) & 0x1FFF == 0).all()


def test_largest_numbers():
    largest = 2.0**128 - 2.0**117
    x = torch.tensor([largest, 2.0**128 - 2.0**116 - 2.0**104, 2.0**128 - 2.0**116, torch.finfo(torch.float32).max])
    assert round_to_tf32(x).tolist() == [largest, largest, float("inf"), float("inf")]
    assert round_to_tf32(-x).tolist() == [-largest, -largest, -float("inf"), -float("inf")]


def test_zeros_infinities_and_nan_stay():
    x = torch.tensor([0.0, -0.0, float("inf"), -float("inf")])
    assert torch.equal(bits_of(round_to_tf32(x)), bits_of(x))
    payloads = torch.tensor([0x7F800001, 0x7F801FFF, 0x7FC00000, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32)
    assert round_to_tf32(payloads.view(torch.float32)).isnan().all()


def test_any_strides_and_no_gradient():
    x = random(3, 4, 5)
    expected = round_to_tf32(x)
    for view in (
        lambda t: t.mT,
        lambda t: t[:, ::2],
        lambda t: t[1, 2, 3],
        lambda t: t[:0],
        lambda t: t[:1].expand(3, 4, 5),
    ):
        assert torch.equal(round_to_tf32(view(x)), view(expected))
    assert torch.equal(round_to_tf32(torch._neg_view(x)), -expected)
    assert not round_to_tf32(x.requires_grad_()).requires_grad
    assert torch.equal(x.detach(), random(3, 4, 5))
    assert torch.equal(round_to_tf32(expected), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32, torch.complex64])
def test_only_float32_is_rounded(dtype):
    with pytest.raises(ValueError, match=r"x must be torch\.float32, got torch\."):
        round_to_tf32(torch.ones(2, dtype=dtype))


A, B, C = random(4, 20, 30), random(4, 30, 10, seed=1), random(4, 20, 10, seed=2)
FORMS = {
    "mm": (lambda: A[0] @ B[0], lambda: exact(A[0], B[0])),
    "keywords": (lambda: torch.mm(input=A[0], mat2=B[0]), lambda: exact(A[0], B[0])),
    "transposed": (lambda: B[0].T @ A[0].T, lambda: exact(A[0], B[0]).T),
    "bmm": (lambda: A @ B, lambda: exact(A, B)),
    "matmul 3-D by 2-D": (lambda: A @ B[0], lambda: exact(A, B[0])),
    "out": (lambda: torch.mm(A[0], B[0], out=torch.empty(20, 10)), lambda: exact(A[0], B[0])),
    "matmul out": (lambda: torch.matmul(A, B, out=torch.empty(4, 20, 10)), lambda: exact(A, B)),
    "einsum": (lambda: torch.einsum("bij,bjk->kbi", A, B), lambda: exact(A, B).permute(2, 0, 1)),
    "tensordot": (lambda: torch.tensordot(A, B[0], 1), lambda: exact(A, B[0])),
    "inner": (lambda: torch.inner(A[0], B[0].T), lambda: exact(A[0], B[0])),
    "linear": (lambda: functional.linear(A, B[0].T, C[0, 0]), lambda: exact(A, B[0]) + C[0, 0]),
    "linear without bias": (lambda: functional.linear(A, B[0].T), lambda: exact(A, B[0])),
    "addmm": (lambda: torch.addmm(C[0], A[0], B[0], beta=2, alpha=-1), lambda: 2 * C[0] - exact(A[0], B[0])),
    "addmm_": (lambda: C[0].clone().addmm_(A[0], B[0]), lambda: C[0] + exact(A[0], B[0])),
    "addmm activation": (
        lambda: torch._addmm_activation(C[0, 0], A[0], B[0]),
        lambda: (C[0, 0] + exact(A[0], B[0])).relu(),
    ),
    "baddbmm": (lambda: torch.baddbmm(C, A, B), lambda: C + exact(A, B)),
    "baddbmm_": (lambda: C.clone().baddbmm_(A, B, beta=0.5), lambda: C / 2 + exact(A, B)),
    "addbmm": (lambda: torch.addbmm(C[0], A, B), lambda: C[0] + exact(A, B).sum(0)),
    "addbmm_": (lambda: C[0].clone().addbmm_(A, B), lambda: C[0] + exact(A, B).sum(0)),
}


@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("form", FORMS)
def test_products_are_those_of_rounded_operands(form, grad_mode):
    product, expected = FORMS[form]
    with grad_mode():
        plain = product()
        with emulate_tf32():
            emulated = product()
            torch.set_float32_matmul_precision("highest")
            assert torch.equal(product(), plain)
        torch.set_float32_matmul_precision("high")
        assert torch.equal(product(), plain)
        assert_is(emulated, expected())
        assert (plain - emulated).abs().max() > 1e-3


def test_backward_products_are_rounded_too():
    x, upstream = random(7, 50), random(7, 40, seed=1)
    layer = torch.nn.Linear(50, 40)
    for precision in ("high", "highest"):
        torch.set_float32_matmul_precision(precision)
        multiply = exact if precision == "high" else lambda a, b: a.double() @ b.double()
        leaf = x.clone().requires_grad_()
        layer.zero_grad()
        with emulate_tf32():
            layer(leaf).backward(upstream)
        assert_is(leaf.grad, multiply(upstream, layer.weight.detach()))
        assert_is(layer.weight.grad, multiply(upstream.T, x))
        assert_is(layer.bias.grad, upstream.double().sum(0))


class OperandRecorder(TorchDispatchMode):
    """Notes the operands of matrix products; around the emulation, it sees what is handed to the device."""

    def __init__(self):
        super().__init__()
        self.operands = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm):
            self.operands += args[:2]
        return func(*args, **(kwargs or {}))


def rounded_share(operands: list[torch.Tensor]) -> float:
    """Share of the operands whose entries are all TF32 numbers."""
    return sum(bool((bits_of(x) & 0x1FFF == 0).all()) for x in operands) / len(operands)


@pytest.mark.parametrize(("precision", "share"), [("medium", 1.0), ("high", 1.0), ("highest", 0.0)])
def test_precision_is_read_at_each_product(precision, share):
    torch.set_float32_matmul_precision("highest" if share else "high")
    with OperandRecorder() as recorder, emulate_tf32():
        A[0] @ B[0]
        torch.set_float32_matmul_precision(precision)
        A @ B
    assert rounded_share(recorder.operands[:2]) == 1 - share
    assert rounded_share(recorder.operands[2:]) == share


def test_only_float32_matrices_are_touched():
    vector = B[0, :, 0]
    double, half = (A[0].double(), B[0].double()), (A[0].bfloat16(), B[0].bfloat16())
    sparse = A[0].to_sparse()
    products = (
        lambda: double[0] @ double[1],
        lambda: half[0] @ half[1],
        lambda: torch.complex(A[0], A[1]) @ torch.complex(B[0], B[1]),
        lambda: A[0] @ vector,
        lambda: vector @ vector,
        lambda: torch.arange(4).reshape(2, 2) @ torch.arange(4).reshape(2, 2),
    )
    for product in products:
        plain = product()
        with emulate_tf32():
            assert torch.equal(product(), plain)
    with emulate_tf32():
        sparse @ B[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(A[0] @ B[0], half[0] @ half[1])


def test_nested_contexts_and_leaving_by_an_error():
    plain = A[0] @ B[0]
    with emulate_tf32(), emulate_tf32():
        assert_is(A[0] @ B[0], exact(A[0], B[0]))
    context = emulate_tf32()
    with pytest.raises(RuntimeError), context:
        A[0] @ A[0]
    assert torch.equal(A[0] @ B[0], plain)


def test_compiled_functions_are_emulated_too():
    @torch.compile(fullgraph=True, backend="eager")
    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b

    plain = product(A[0], B[0])
    with emulate_tf32():
        assert_is(product(A[0], B[0]), exact(A[0], B[0]))
    assert torch.equal(product(A[0], B[0]), plain)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="needs a GPU with TF32"
)
def test_a_device_with_tf32_is_left_alone():
    a, b = A.cuda(), B.cuda()
    hardware = a @ b
    with OperandRecorder() as recorder, emulate_tf32():
        assert torch.equal(a @ b, hardware)
    assert rounded_share(recorder.operands) == 0


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_soap_multiplies_in_its_own_precision(precision):
    torch.set_float32_matmul_precision("highest")
    G = random(128, 64)
    weight = torch.nn.Parameter(torch.zeros(128, 64))
    optimizer = SOAP([weight], lr=1.0, fp32_matmul_prec=precision, qr_fp32_matmul_prec=precision)
    weight.grad = G.clone()
    with OperandRecorder() as recorder, emulate_tf32():
        optimizer.step()
    multiply = exact if precision == "high" else lambda a, b: a.double() @ b.double()
    state = optimizer.state[weight]  # the bias correction makes the first averages G Gᵀ and Gᵀ G
    assert_is(state["L"] / 128, multiply(G, G.T) / 128)
    assert_is(state["R"] / 128, multiply(G.T, G) / 128)
    assert rounded_share(recorder.operands[:4]) == (precision == "high")
    assert torch.get_float32_matmul_precision() == "highest"


def test_small_eigenvalues_drown_in_tf32():
    """A Kronecker factor with eigenvalues from 2.5e6 to 0.1."""
    basis = torch.linalg.qr(random(128, 128).double()).Q
    values = torch.logspace(np.log10(2.5e6), -1, 128, dtype=torch.float64)
    L, Q = ((basis * values) @ basis.T).float(), basis.float()
    tail = slice(-8, None)  # 0.3 to 0.1
    full = (Q.T @ L @ Q).diagonal()
    with emulate_tf32():
        emulated = (Q.T @ L @ Q).diagonal()
        ordered = sort_eigenbasis(Q, L)[0]
    relative = [(estimate.double() - values).abs() / values for estimate in (full, emulated)]
    assert relative[0][tail].median() < 0.05
    assert relative[1][tail].median() > 10
    assert (emulated[tail] < 0).any()
    assert relative[1][:8].max() < 1e-2  # the head is right in both
    torch.testing.assert_close(ordered[tail], values[tail], rtol=0.1, atol=0)


def test_gram_svd_follows_the_precision():
    S = torch.tensor([1.0, 0.5, 0.2, 0.1], dtype=torch.float64)
    U, V = (torch.linalg.qr(random(16, n, 4, seed=n).double()).Q for n in (64, 4))
    matrices = (U * S @ V.mT).float()
    plain = gram_svd(matrices, vectors="both")
    errors = {}
    for precision in ("high", "highest"):
        torch.set_float32_matmul_precision(precision)
        with emulate_tf32():
            factors = gram_svd(matrices, vectors="both")
        errors[precision] = (factors.S / S - 1).abs().amax(0)
    assert all(torch.equal(a, b) for a, b in zip(factors, plain, strict=True))
    assert errors["highest"].max() < 1e-5
    assert errors["high"].max() < 1e-2
    assert errors["high"][-1] > 1e-4
    assert errors["high"][0] < errors["high"][-1]
