"""Fits of a language model's KV cache on calibration text, to be kept."""

import torch
from torch import Tensor

from eigenscope.kv.cache.cache_fits import CacheFits
from eigenscope.kv.cache.hugging_face import DynamicCache, PreTrainedModel
from eigenscope.kv.cache.measured_sensitivities import FEWEST, PREDICTIONS, cache_argument, measure_sensitivities
from eigenscope.kv.cache.model_identity import model_identity
from eigenscope.kv.cache.spectral_cache import DEFAULT_BITS
from eigenscope.kv.cache.unrotated_keys import UnrotatedKeys
from eigenscope.kv.codecs.pooled_codec import PooledCodec
from eigenscope.kv.codecs.sensitivities import Sensitivities


def fit_cache(
    model: PreTrainedModel,
    tokens: Tensor,
    *,
    bits: float = DEFAULT_BITS,
    serves: int | None = None,
    entropy_coded: bool = False,
    sensitivities: Sensitivities | None = None,
    sinks: int = 4,
) -> CacheFits:
    """Learns bases, bits and scales of a model's keys and values from calibration text.

    ``fit_cache(model, tokens).save("fits.safetensors")``, and later
    ``spectral_cache(model, fits=CacheFits.load("fits.safetensors"))``: nothing is learned from a prompt then, and no
    backward pass is made.

    Args:
        model: a language model that :class:`SpectralCache` accepts.
        tokens: (B, T) numbers of calibration tokens, without padding; some thousands are enough.
        bits: of an element, everything counted.
        serves: tokens over which the bytes of the bases are shared out; None: those of the calibration.
        entropy_coded: as for :class:`SpectralCache`.
        sensitivities: instead of those that are measured on the last tokens of each sequence.
        sinks: first tokens of each sequence, which are kept exact and not looked at.

    Raises:
        ValueError: the calibration is not of token numbers, or too short; otherwise as :meth:`PooledCodec.fit`.
    """
    if tokens.ndim != 2 or tokens.is_floating_point() or tokens.shape[1] < sinks + 2 * FEWEST or not len(tokens):
        raise ValueError(
            f"tokens must be (B, T) numbers of at least {sinks + 2 * FEWEST} calibration tokens, got {tokens.dtype} of "
            f"shape {tuple(tokens.shape)}"
        )
    tokens = tokens.to(model.device)
    frame = UnrotatedKeys(model.config.get_text_config(decoder=True))
    cache = DynamicCache()
    decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        decoder(input_ids=tokens, use_cache=True, **{cache_argument(decoder): cache})
    keys, values = ([getattr(layer, name) for layer in cache.layers] for name in ("keys", "values"))
    if sensitivities is None:
        count = min(PREDICTIONS, tokens.shape[1] // 2)
        before_keys, before_values = ([x[:, :, :-count] for x in side] for side in (keys, values))
        inputs = {"input_ids": tokens[:, -count:]}
        sensitivities = measure_sensitivities(model, inputs, before_keys, before_values, frame, sinks=sinks)
    codec = PooledCodec(bits, tokens=serves, entropy_coded=entropy_coded)
    coded = [frame.undo(x[:, :, sinks:], sinks) for x in keys], [x[:, :, sinks:] for x in values]
    layers, sensitivities = codec.fit(coded[0], coded[1], sensitivities)
    return CacheFits(model_identity(model.config), codec, tuple(layers), sensitivities)
