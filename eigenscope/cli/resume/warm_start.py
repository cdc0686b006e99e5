"""Warm start: weights of a checkpoint loaded into a module that may differ from the checkpoint's."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from eigenscope.checkpoints import read_checkpoint
from eigenscope.cli.errors.suggestions import hint, nearest_key

#: Beginning of a name in the checkpoint to beginning of a name in the module, in whole parts; None leaves it out.
Mapped = Mapping[str, str | None]


@dataclass(frozen=True)
class WarmStart:
    """What came of a warm start.

    Attributes:
        taken: tensors of the module that are the checkpoint's.
        initialised: names of those that are as they were.
        left_out: names in the checkpoint that went nowhere.
    """

    taken: int
    initialised: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.taken} of the module's {self.taken + len(self.initialised)} tensors are the checkpoint's"]
        if self.initialised:
            parts.append(f"{len(self.initialised)} are as initialised")
        if self.left_out:
            parts.append(f"{len(self.left_out)} of the checkpoint's are left out")
        return ", ".join(parts)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU; no code is executed.

    Args:
        path: a ``.safetensors`` file, or a checkpoint with a ``state_dict`` or of tensors alone.

    Raises:
        ValueError: the file is not there, is damaged, or holds no tensors by name.
    """
    if path.is_dir():
        raise ValueError(f"warm_start must be a file of weights, such as checkpoints/best.ckpt, got the folder {path}")
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise ValueError(f"warm_start: {path} does not exist")
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"warm_start: {path} is damaged or no safetensors file ({error})") from error
    content = read_checkpoint(path)
    weights = content.get("state_dict", content)
    pairs = weights.items() if isinstance(weights, Mapping) else ()
    named = {name: value for name, value in pairs if isinstance(value, Tensor)}
    if not named or (weights is content and len(named) < len(content)):
        raise ValueError(f"warm_start: {path} has no state_dict, and is none")
    return named


def warm_start(module: nn.Module, weights: Mapping[str, Tensor], mapping: Mapped | None = None) -> WarmStart:
    """Copies weights into the parameters and persistent buffers of a module, all of them unless the mapping says so.

    Where prefixes of several entries begin a name, the longest decides; the empty prefix begins every name. What an
    entry leaves out of the checkpoint may stay in the module as it was initialised.

    Args:
        module: changed in place, and only if everything fits.
        weights: tensors by name, of the module's shapes; they are converted to its dtypes and devices.
        mapping: prefixes of names in the checkpoint to prefixes in the module, or None.

    Raises:
        ValueError: a tensor of the module is missing, one of the checkpoint has no place or another shape (all are
            listed); an entry begins no name; or two tensors go to one place.
    """
    mapping = dict(mapping or {})
    own = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    _check_entries(mapping, weights, own)
    sources: dict[str, str] = {}
    left_out = []
    for name in weights:
        target = _target(name, mapping)
        if target is None:
            left_out.append(name)
        elif target in sources:
            raise ValueError(f"warm_start_map leads both {sources[target]} and {name} to {target}")
        else:
            sources[target] = name
    missing = [name for name in own if name not in sources]
    initialised = [name for name in missing if not _is_required(name, mapping)]
    _check_fit(own, weights, sources, (name for name in missing if _is_required(name, mapping)))
    module.load_state_dict(module.state_dict() | {target: weights[name] for target, name in sources.items()})
    return WarmStart(len(sources), tuple(initialised), tuple(left_out))


def misshaped(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The tensors of a module that a checkpoint has in another shape, each with both shapes, as text for people.

    Args:
        module: in question.
        shapes: the checkpoint's, by name.
    """
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    return [_shapes(name, shapes[name], own[name]) for name in own if name in shapes and shapes[name] != own[name]]


def unmatched(module: nn.Module, names: Collection[str]) -> list[str]:
    """The tensors that a module or a checkpoint has alone, as text for people.

    Args:
        module: in question.
        names: of the tensors in the checkpoint.
    """
    own = [name for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)]
    missing = [f"missing from the checkpoint: {name}" for name in own if name not in names]
    return missing + [f"not in the module: {name}" for name in names if name not in own]


def _check_entries(mapping: Mapped, weights: Iterable[str], own: Iterable[str]) -> None:
    theirs, ours = _prefixes(weights), _prefixes(own)
    for prefix, target in mapping.items():
        known = theirs if target is not None else theirs | ours
        if prefix not in known:
            _, meant, names = nearest_key(prefix, known - {""})
            where = "the checkpoint" if target is not None else "the checkpoint or the module"
            end = hint(meant, names, "there are")
            raise ValueError(f"warm_start_map: no name in {where} begins with the whole parts {prefix!r}{end}")


def _check_fit(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], sources: Mapping[str, str], missing: Iterable[str]
) -> None:
    problems = [f"missing from the checkpoint: {name}" for name in missing]
    for target, name in sources.items():
        if target not in own:
            problems.append(f"not in the module: {target}" + (f", from {name}" if name != target else ""))
        elif own[target].shape != weights[name].shape:
            shapes = _shapes(target, tuple(weights[name].shape), tuple(own[target].shape))
            problems.append(f"of another shape: {shapes}")
    if problems:
        raise ValueError(
            "the weights of the warm start do not fit the module:"
            + "".join(f"\n  {problem}" for problem in problems)
            + "\nSay where parts belong with --warm_start_map, such as '{old.part: new.part, net.head: null}'; null "
            "leaves a part as initialised"
        )
    if not sources:
        raise ValueError("warm_start_map leaves nothing of the checkpoint")


def _shapes(name: str, theirs: tuple[int, ...], own: tuple[int, ...]) -> str:
    return f"{name} is {theirs} in the checkpoint, {own} in the module"


def _target(name: str, mapping: Mapped) -> str | None:
    prefix = _longest(name, mapping)
    if prefix is None:
        return name
    target = mapping[prefix]
    rest = name[len(prefix) :].removeprefix(".")
    return None if target is None else ".".join(part for part in (target, rest) if part)


def _is_required(name: str, mapping: Mapped) -> bool:
    """Whether a tensor of the module must come from the checkpoint: unless the entry nearest to it leaves it out."""
    optional = {prefix: False for prefix, target in mapping.items() if target is None}
    required = optional | {target: True for target in mapping.values() if target is not None}
    prefix = _longest(name, required)
    return prefix is None or required[prefix]


def _longest(name: str, prefixes: Iterable[str]) -> str | None:
    fitting = [prefix for prefix in prefixes if not prefix or f"{name}.".startswith(f"{prefix}.")]
    return max(fitting, key=len, default=None)


def _prefixes(names: Iterable[str]) -> set[str]:
    """Every beginning of names in whole parts, the empty one and the whole included."""
    parts = [name.split(".") for name in names]
    return {".".join(part[:count]) for part in parts for count in range(len(part) + 1)}
