import math

import pytest
import torch
from scipy import stats

from eigenscope.nn.autoencoders.reconstruction_errors import reconstruction_errors, student_t_errors

ERRORS = torch.tensor([[0.0, 0.5], [-1.0, 3.0], [1e4, -1e4]])
TARGETS = torch.tensor([[1.0, -2.0], [0.25, 7.0], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("mse", lambda e: e * e),
        ("huber", lambda e: e * e / 2 if abs(e) <= 1 else abs(e) - 0.5),
        ("log_cosh", lambda e: math.log(math.cosh(e)) if abs(e) < 700 else abs(e) - math.log(2)),
    ],
)
def test_closed_forms(kind, function):
    expected = torch.tensor([sum(map(function, row)) / 2 for row in ERRORS.tolist()])
    torch.testing.assert_close(reconstruction_errors(TARGETS + ERRORS, TARGETS, kind), expected)


@pytest.mark.parametrize("nu", [1e-3, 1.0, 3.0, 30.0, 9999.0, 1e4])
@pytest.mark.parametrize("scale", [0.2, 4.0])
def test_student_t_is_that_of_scipy(nu, scale):
    errors = student_t_errors(TARGETS + ERRORS, TARGETS, torch.tensor(math.log(scale)), nu)
    expected = torch.from_numpy(-stats.t.logpdf(ERRORS.double().numpy(), nu, scale=scale).mean(1))
    torch.testing.assert_close(errors.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_scale_of_each_number():
    scales = torch.tensor([0.5, 2.0])
    errors = student_t_errors(TARGETS + ERRORS, TARGETS, scales.log(), 3.0)
    expected = torch.from_numpy(-stats.t.logpdf(ERRORS.double().numpy(), 3, scale=scales.double().numpy()).mean(1))
    torch.testing.assert_close(errors.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_learned_scale_finds_that_of_the_errors():
    errors = 3 * torch.from_numpy(stats.t.rvs(4, size=(8, 2000), random_state=0)).float()
    log_scale = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([log_scale], 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        student_t_errors(errors, torch.zeros_like(errors), log_scale).mean().backward()
        optimizer.step()
    assert log_scale.exp().item() == pytest.approx(3, rel=0.03)


@pytest.mark.parametrize("kind", ["huber", "log_cosh", "student_t"])
def test_gradients_of_far_outliers_are_bounded(kind):
    reconstructions = torch.tensor([[0.0, 1e4], [0.0, -1e18]], requires_grad=True)
    targets = torch.zeros(2, 2)
    if kind == "student_t":
        errors = student_t_errors(reconstructions, targets, torch.tensor(0.0))
    else:
        errors = reconstruction_errors(reconstructions, targets, kind)
    errors.sum().backward()
    assert errors.isfinite().all()
    assert reconstructions.grad.abs().max() <= 0.5


def test_half_precision_is_computed_in_float32():
    half = TARGETS.bfloat16()
    assert reconstruction_errors(half, half, "huber").dtype == torch.float32
    assert student_t_errors(half, half, torch.tensor(0.0)).dtype == torch.float32


def test_errors_name_what_is_allowed():
    with pytest.raises(ValueError, match="kind must be one of mse, huber, log_cosh, got 'l1'"):
        reconstruction_errors(TARGETS, TARGETS, "l1")
    for nu in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"degrees_of_freedom must be a positive finite number, got {nu}"):
            student_t_errors(TARGETS, TARGETS, torch.tensor(0.0), nu)
