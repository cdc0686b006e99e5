"""Sensitivities of a language model, from gradients of its own predictions with respect to a cache."""

import inspect
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from eigenscope.kv.cache.hugging_face import DynamicCache
from eigenscope.kv.cache.unrotated_keys import UnrotatedKeys
from eigenscope.kv.codecs.sensitivities import Sensitivities, Sensitivity

PREDICTIONS, PASSES = 128, 2
FEWEST = 16  # predictions from which anything can be said
MOST_COHERENT = 100.0  # the ratio is of few draws


def measure_sensitivities(
    model: nn.Module,
    inputs: Mapping[str, Any],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    frame: UnrotatedKeys,
    *,
    sinks: int,
    seed: int = 0,
) -> Sensitivities:
    """What errors in the keys and values of the tokens read so far cost the predictions at the last ones.

    A Fisher estimate: with y drawn from the model's own predictions and random signs s, the gradient g of
    Σ s log p(y) with respect to the cache has E g gᵀ equal to the matrix F of KL(p ‖ p̂) ≈ ½ eᵀ F e, summed over the
    predictions. The weight of a head is tr(F Σ) / tr(Σ), with F summed token by token and Σ the covariance of its keys
    or values; the coherence is how much more Σ_t gᵀ x comes to than its terms by themselves, along the principal
    directions of x. The random state is not touched.

    Args:
        model: gives logits for ``inputs`` and a cache.
        inputs: arguments of its forward pass, for the last n tokens: ``input_ids`` or ``inputs_embeds``, and
            ``attention_mask`` and ``position_ids`` where they are given.
        keys: of each layer, (B, heads, T, d) as they are in the cache, of all tokens before those n.
        values: of each layer, (B, heads, T, d).
        frame: undoes the rotation of the keys.
        sinks: slots at the start that stay exact and do not count; the slots of padding do not either.
        seed: of the draws.

    Raises:
        ValueError: a gradient of a layer is not finite.
    """
    name = cache_argument(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad():
        K, V = ([x.detach().clone().requires_grad_() for x in side] for side in (keys, values))
        sums: dict[tuple[int, int], list[Tensor]] = {}
        for _ in range(PASSES):
            cache = DynamicCache()
            for index, pair in enumerate(zip(K, V, strict=True)):
                cache.update(*pair, index)
            given = {key: value.clone() if isinstance(value, Tensor) else value for key, value in inputs.items()}
            logits = model(**given, **{name: cache}, use_cache=True).logits.float().log_softmax(-1)
            probabilities = logits.detach().exp().flatten(0, -2).cpu()
            drawn = torch.multinomial(probabilities, 1, generator=generator).to(logits.device)
            signs = torch.randint(0, 2, (len(drawn),), generator=generator).mul(2).sub(1).to(logits)
            score = (logits.flatten(0, -2).gather(1, drawn)[:, 0] * signs).sum()
            gradients = torch.autograd.grad(score, [*K, *V])
            for layer in range(len(K)):
                for side, (x, g) in enumerate(((K[layer], gradients[layer]), (V[layer], gradients[len(K) + layer]))):
                    x = x.detach()
                    if side == 0:
                        x, g = frame.undo(x, 0), frame.undo(g, 0) * frame.factor**2
                    terms = _terms(x, g, sinks if frame.padding is None else frame.padding[:, None] + sinks)
                    if not all(term.isfinite().all() for term in terms):
                        role = ("keys", "values")[side]
                        raise ValueError(f"gradients of the {role} of layer {layer} must be finite, got NaN or inf")
                    old = sums.get((layer, side))
                    sums[layer, side] = terms if old is None else [a + b for a, b in zip(old, terms, strict=True)]
            frame.forget()
    sites = [[_site(*sums[layer, side]) for layer in range(len(K))] for side in (0, 1)]
    count = next(iter(inputs.values())).shape[1]
    return Sensitivities(tuple(sites[0]), tuple(sites[1]), f"the last {count} tokens of the prompt")


def cache_argument(model: nn.Module) -> str:
    """The name of the argument by which a decoder of transformers takes its cache.

    Raises:
        ValueError: this version has neither of the names that are known.
    """
    parameters = inspect.signature(type(model).forward).parameters
    for name in ("cache", "past_key_values"):  # from 5.24 on, and before
        if name in parameters:
            return name
    raise ValueError(
        f"{type(model).__name__} of transformers {version('transformers')} takes neither cache nor past_key_values, "
        "as versions 5.23 and 5.24 do: its cache cannot be compressed"
    )


def _terms(x: Tensor, g: Tensor, first: Tensor | int) -> list[Tensor]:
    """tr(F Σ), tr(Σ), the coherent and the independent sum of one pass, each (heads,), of the slots from first on."""
    slots = torch.arange(x.shape[-2], device=x.device)
    counted = (slots >= (first.to(x.device) if isinstance(first, Tensor) else first)).expand(len(x), -1)
    counted = counted[:, None, :, None]
    x, g = (t.float().movedim(1, 0).flatten(1, 2) for t in (x, g * counted))  # (heads, tokens, d)
    counted = counted.expand(-1, len(x), -1, -1).movedim(1, 0).flatten(1, 2)
    x = (x - (x * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp_min(1)) * counted
    covariance, fisher = x.mT @ x, g.mT @ g
    if not covariance.isfinite().all():
        return [covariance.sum((1, 2))] * 4
    along = torch.linalg.eigh(covariance)[1]
    products = (g @ along) * (x @ along)
    size = covariance.diagonal(dim1=1, dim2=2).sum(1)
    return [(fisher * covariance).sum((1, 2)), size, products.sum(1).square().sum(1), products.square().sum((1, 2))]


def _site(cost: Tensor, size: Tensor, coherent: Tensor, independent: Tensor) -> Sensitivity:
    tiny = torch.finfo(torch.float32).tiny
    return Sensitivity(
        (cost / size.clamp_min(tiny)).cpu(), (coherent / independent.clamp_min(tiny)).clamp(1, MOST_COHERENT).cpu()
    )
