"""Names of the parts of an attention layer: projections, norms, numbers of heads."""

import re
from itertools import product

from torch import nn

_NAMES = (("q", "k", "v"), ("query", "key", "value"), ("queries", "keys", "values"))
_FUSED = re.compile(r"(?i)(^|_)(w?qkv|query_key_value|c_attn)(_|$)|^in_proj$")
_NO_PROJECTION = re.compile(r"(?i)norm|drop|rot|rope|pool|conv|bias|(^|_)ln(_|$)")


def projections(module: nn.Module) -> tuple[str, ...] | None:
    """Names of the children that project to queries, keys and values: three of a kind, or one for all; None for none.

    Three are named alike but for q, k, v or the words that these stand for: ``q_proj``, ``to_q``, ``wq``, ``query``.
    """
    names = [name for name, _ in module.named_children() if not _NO_PROJECTION.search(name)]
    for name, (q, *others) in product(names, _NAMES):
        found = re.search(rf"(?i)(?<![a-z])w?{q}(?![a-z])", name)
        if found:
            before, letter, after = name[: found.end() - len(q)], found[0][-len(q) :], name[found.end() :]
            k, v = (x.upper() if letter.isupper() else x for x in others)
            three = (name, f"{before}{k}{after}", f"{before}{v}{after}")
            if set(three) <= set(names):
                return three
    return next(((name,) for name in names if _FUSED.search(name)), None)


def norms(module: nn.Module) -> tuple[str, str] | None:
    """Names of the children that normalise queries and keys, such as ``q_norm`` and ``k_norm``; None for none."""
    names = [name for name, _ in module.named_children() if re.search(r"(?i)norm|(^|_)ln(_|$)", name)]
    for name in names:
        for q, k, _ in _NAMES:
            other = re.sub(rf"(^|_){q}(_|$)", rf"\g<1>{k}\g<2>", name)
            if other != name and other in names:
                return name, other
    return None


def whole_number(module: nn.Module, names: tuple[str, ...]) -> int | None:
    """The first of these attributes of the module, or of its configuration, that is a whole number above 0."""
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None
