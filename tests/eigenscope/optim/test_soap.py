import copy
import pickle
import sys
from itertools import combinations

import emerging_optimizers.soap
import pytest
import torch
from emerging_optimizers.soap import SOAP as LibrarySOAP
from emerging_optimizers.soap import soap as library
from torch import nn

from eigenscope.optim import REKLS, SOAP, emerging, soap_step

SHAPES = [(6, 4), (4, 9)]


def weights(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def train(optimizer, steps, seed=1, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = (scale * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
        optimizer.step()
    return optimizer.param_groups[0]["params"]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def tensors(optimizer):
    return [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]


@pytest.mark.parametrize(
    ("ours", "arguments", "theirs"),
    [
        (SOAP, {}, {}),
        (SOAP, {"lr": 0.1, "betas": (0.5, 0.7)}, {}),
        (SOAP, {"shampoo_beta": 0.5, "eps": 1e-3, "weight_decay": 0.3}, {}),
        (SOAP, {"weight_decay": 0.0}, {}),
        (SOAP, {"max_update_rms": 0.1}, {}),
        (SOAP, {"use_kl_shampoo": True}, {}),
        (REKLS, {"eps": 1e-3}, {"use_kl_shampoo": True, "use_eigh": True}),
        (REKLS, {"betas": (0.5, 0.7), "shampoo_beta": 0.5, "max_update_rms": 0.1}, "same"),
    ],
)
def test_steps_as_the_library_at_full_precision(ours, arguments, theirs):
    theirs = {"use_kl_shampoo": True, "use_eigh": True} if theirs == "same" else theirs
    arguments = {"lr": 0.01, **arguments}
    precision = {"fp32_matmul_prec": "highest", "qr_fp32_matmul_prec": "highest"}
    with torch.compiler.set_stance("force_eager"):
        expected = train(LibrarySOAP(weights(), **arguments, **theirs, **precision), 6)
        plain = train(LibrarySOAP(weights(), 0.01, **theirs, **precision), 6)
    assert equal(train(ours(weights(), **arguments), 6), expected)
    assert arguments == {"lr": 0.01} or not equal(expected, plain)


@pytest.mark.parametrize("kind", [SOAP, REKLS])
def test_emulation_rounds_the_products_that_are_not_at_the_highest_precision(kind):
    def run(**arguments):
        optimizer = kind(weights(), 0.01, **arguments)
        return [x.clone() for x in train(optimizer, 5)], [state["L"] for state in optimizer.state.values()]

    exact, exact_factors = run()
    for idle in ({"emulate_tf32": True}, {"fp32_matmul_prec": "high", "qr_fp32_matmul_prec": "high"}):
        assert equal(run(**idle)[0], exact)  # a CPU has no TF32
    rounded, factors = run(fp32_matmul_prec="high", emulate_tf32=True)
    projected_grad, untouched = run(qr_fp32_matmul_prec="high", emulate_tf32=True)
    both, _ = run(fp32_matmul_prec="high", qr_fp32_matmul_prec="high", emulate_tf32=True)
    assert not any(equal(one, other) for one, other in combinations((exact, rounded, projected_grad, both), 2))
    if kind is SOAP:  # KL-Shampoo's factors depend on the eigenbases too
        assert equal(untouched, exact_factors)
        for a, b in zip(factors, exact_factors, strict=True):
            assert 1e-6 < torch.dist(a, b) / b.norm() < 2**-10  # of two operands, each half a unit in the 11th bit
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_closure_runs_once_with_gradients_before_the_step():
    (weight, _), (twin, _) = weights(), weights()
    first, second = SOAP([weight], 0.01), SOAP([twin], 0.01)
    calls = []

    def closure():
        calls.append(weight.detach().clone())
        first.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = first.step(closure)
    twin.grad = 2 * twin.detach()
    second.step()
    assert len(calls) == 1
    assert torch.equal(calls[0], weights()[0])
    assert loss == weights()[0].square().sum()
    assert torch.equal(weight, twin)


def test_parameters_without_a_gradient_are_left_alone():
    first, second = weights()
    optimizer = SOAP([first, second], 0.01)
    second.grad = torch.ones_like(second)
    optimizer.step()
    assert torch.equal(first, weights()[0])
    assert not torch.equal(second, weights()[1])
    assert list(optimizer.state) == [second]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [SOAP, REKLS])
def test_a_loaded_state_goes_on_bit_for_bit(kind, dtype, tmp_path):
    whole = kind(weights(dtype=dtype), 0.01)
    train(whole, 3)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    resumed = kind([nn.Parameter(p.detach().clone()) for p in whole.param_groups[0]["params"]], 0.5)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert {x.dtype for x in tensors(resumed)} == {torch.float32}
    assert equal(tensors(resumed), tensors(whole))
    assert equal(train(resumed, 3, seed=2), train(whole, 3, seed=2))


@pytest.mark.parametrize("kind", [SOAP, REKLS])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_steps_alike(kind, copied):
    optimizer = kind(weights(), 0.01, max_update_rms=0.1, emulate_tf32=True, fp32_matmul_prec="high")
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # which patches its step
    train(optimizer, 2)
    twin = copied(optimizer)
    assert twin.param_groups[0]["params"][0] is not optimizer.param_groups[0]["params"][0]
    assert equal(train(twin, 2, seed=3), train(optimizer, 2, seed=3))


def test_a_schedule_changes_the_rate():
    optimizer = SOAP(weights(), 1.0, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.0)
    train(optimizer, 1)
    before = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
    schedule.step()
    assert equal(train(optimizer, 1), before)


def test_step_hooks_run_once_also_once_the_library_has_made_its_own():
    LibrarySOAP(weights(), 0.01)
    optimizer = REKLS(weights(), 0.01)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(optimizer, 1)
    assert seen == ["before", "after"]


def test_nothing_is_compiled_on_a_cpu_and_compilation_returns_after_an_error():
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    optimizer, graphs = SOAP(weights(), 0.01), torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    train(optimizer, 1)
    assert graphs["unique_graphs"] == before
    optimizer.state[optimizer.param_groups[0]["params"][0]]["L"] = torch.zeros(2, 3)
    with pytest.raises(RuntimeError):
        train(optimizer, 1)
    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert len(compiled) == 1


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("lr", -1.0),
        ("lr", float("nan")),
        ("eps", -1e-8),
        ("weight_decay", -0.1),
        ("max_update_rms", -1.0),
        ("betas", (1.0, 0.9)),
        ("betas", (0.9, -0.1)),
        ("shampoo_beta", 1.0),
        ("fp32_matmul_prec", "tf32"),
        ("qr_fp32_matmul_prec", "low"),
    ],
)
def test_wrong_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=rf"{argument}.* must be .*got"):
        SOAP(weights(), **{argument: value})
    with pytest.raises(ValueError, match=argument):
        REKLS(weights(), **{argument: value})


def test_what_is_not_a_matrix_is_named():
    with pytest.raises(ValueError, match=r"parameter bias of shape \(3,\)"):
        SOAP([("weight", nn.Parameter(torch.ones(3, 3))), ("bias", nn.Parameter(torch.ones(3)))])
    with pytest.raises(ValueError, match=r"number 0 of shape \(2, 3, 4\)"):
        REKLS([nn.Parameter(torch.ones(2, 3, 4))])


@pytest.fixture
def another_version(monkeypatch):
    """emerging-optimizers 0.1.7, as the test changes it, looked at anew."""
    monkeypatch.setattr(emerging, "version", lambda _: "0.1.7")
    soap_step.library.cache_clear()
    yield monkeypatch
    soap_step.library.cache_clear()


@pytest.mark.parametrize("kind", [SOAP, REKLS])
def test_a_version_of_the_library_without_a_function_is_refused_when_an_optimizer_is_made(kind, another_version):
    another_version.delattr(library, "update_kronecker_factors_kl_shampoo")
    with pytest.raises(ImportError, match=r"optimizers 0.1.7 is installed, with no \S+_kl_shampoo; .*>=0.3,<0.4"):
        kind(weights())


@pytest.mark.parametrize(
    ("module", "name", "lacking"),
    [
        (library, "update_eigenbasis_and_exp_avgs", "eigenbasis_list, exp_avg_sq, power_iter_steps, use_eigh"),
        (library.update_functions, "calculate_adam_update", "betas, correct_bias, eps, nesterov, step"),
    ],
)
def test_a_version_of_the_library_whose_functions_lack_arguments_is_refused(module, name, lacking, another_version):
    another_version.setattr(module, name, lambda kronecker_factor_list, exp_avg: None)
    with pytest.raises(ImportError, match=f"with {name} without {lacking}; "):
        SOAP(weights())


def test_a_version_of_the_library_without_the_module_is_refused(another_version):
    another_version.delattr(emerging_optimizers.soap, "soap")
    another_version.setitem(sys.modules, "emerging_optimizers.soap.soap", None)
    with pytest.raises(ImportError, match=r"0.1.7 is installed, with no emerging_optimizers.soap.soap; "):
        SOAP(weights())
