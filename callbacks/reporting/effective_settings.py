"""Requested settings of a configuration beside the effective settings of its trainer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from eigenscope.adapters.lightning_names import registered_strategy
from eigenscope.adapters.torch_names import any_compiled
from eigenscope.optim.eigenbases.tracked_parameters import optimizer_parts
from eigenscope.precision import has_tf32, precision_name

Value = str | int | float | None


@dataclass(frozen=True)
class Setting:
    """A setting: the requested value (None if not stated), the effective one, and whether they differ."""

    name: str
    asked: Value
    live: Value
    differs: bool


def effective_settings(trainer: Trainer, module: LightningModule, asked: Mapping[str, Any], seed: int) -> list[Setting]:
    """The settings that results depend on.

    Args:
        trainer: in a fit, its optimizers and loaders made.
        module: that is trained.
        asked: the configuration of ``fit`` as plain values; empty where there is none, as from Python.
        seed: that of the run, before ranks were given streams of their own.
    """
    return [
        *_of_optimizers(trainer, _at(asked, "model", "init_args", "optimizer") or {}),
        *_of_numbers(trainer, module, asked, seed),
        *_of_batches(trainer, asked),
        *_of_devices(trainer, asked.get("trainer") or {}),
    ]


def optimizer_names(optimizers: Iterable[Optimizer]) -> str:
    """Of the optimizers that take the steps, the two of a split one in its place: ``SOAP+AdamW``."""
    return "+".join(type(part).__name__ for part in optimizer_parts(optimizers))


def _of_optimizers(trainer: Trainer, asked: Mapping[str, Any]) -> list[Setting]:
    live = "; ".join(
        _with_parts(type(optimizer).__name__, [type(part).__name__ for part in optimizer_parts([optimizer])])
        for optimizer in trainer.optimizers
    )
    parts = [_class_name(value) for value in (asked.get("init_args") or {}).values() if _class_name(value)]
    name = _class_name(asked)
    settings = [_compared("optimizer", _with_parts(name, parts) if name else None, live)]
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    groups = [(optimizer, group) for optimizer in trainer.optimizers for group in optimizer.param_groups]
    for index, (optimizer, group) in enumerate(groups):
        by = [type(schedule).__name__ for schedule in schedules if schedule.optimizer is optimizer]
        options = _options_of(asked, group) if len(trainer.optimizers) == 1 else {}
        label = f"learning rate of {group['name']}" if "name" in group else "learning rate"
        label += f" {index}" if len(groups) > 1 and "name" not in group else ""
        # a one-cycle schedule has a peak, which it is given, and begins far below it
        base = float(group.get("max_lr", group.get("initial_lr", group["lr"])))
        rate = options.get("lr")
        now = f"{float(group['lr']):.6g}"
        live = f"{now}, from {base:.6g} by {' and '.join(by)}" if by else now
        settings.append(Setting(label, rate, live, rate is not None and abs(float(rate) - base) > 1e-9 * base))
    return settings


def _of_numbers(trainer: Trainer, module: LightningModule, asked: Mapping[str, Any], live_seed: int) -> list[Setting]:
    """Precisions, seed, compilation."""
    precision = _at(asked, "trainer", "precision")
    precision = None if precision is None else precision_name(precision)
    device = trainer.strategy.root_device
    settings = [
        _compared("precision", precision, str(trainer.precision)),
        Setting("matmul precision of torch", None, _torch_precision(device), False),
    ]
    for part in optimizer_parts(trainer.optimizers):
        name = type(part).__name__
        options = _options_named(_at(asked, "model", "init_args", "optimizer"), name)
        for key in ("fp32_matmul_prec", "qr_fp32_matmul_prec"):
            live = getattr(part, key, part.defaults.get(key))
            if live is not None:
                emulated = getattr(part, "emulate_tf32", False)
                lacking = live == "high" and not has_tf32(device) and not emulated
                shown = f"{live}, emulated" * emulated or f"highest: {device.type} has no TF32" * lacking or live
                request = options.get(key)
                differs = lacking or request not in (None, live)
                settings.append(Setting(f"{key} of {name}", request, shown, differs))
    seed = asked.get("seed_everything")
    settings.append(_compared("seed", None if isinstance(seed, bool) else seed, live_seed))
    settings.append(
        _compared("compiled", _yes(_at(asked, "model", "init_args", "compile_net")), _yes(any_compiled(module)))
    )
    return settings


def _of_batches(trainer: Trainer, asked: Mapping[str, Any]) -> list[Setting]:
    options = asked.get("trainer") or {}
    size = getattr(trainer.train_dataloader, "batch_size", None)
    size = None if size is None else size * trainer.world_size
    clipping = _clipping(trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
    asked_clipping = _clipping(options.get("gradient_clip_val"), options.get("gradient_clip_algorithm"))
    return [
        _compared("batch size over all ranks", _at(asked, "data", "init_args", "batch_size"), size),
        _compared("batches a step", options.get("accumulate_grad_batches"), int(trainer.accumulate_grad_batches)),
        _compared("gradient clipping", asked_clipping if options else None, clipping),
    ]


def _of_devices(trainer: Trainer, options: Mapping[str, Any]) -> list[Setting]:
    device, strategy, count = (options.get(key) for key in ("accelerator", "strategy", "devices"))
    live = trainer.strategy.root_device.type
    known = {"cpu": ("cpu",), "cuda": ("cuda",), "mps": ("mps",), "gpu": ("cuda", "mps")}
    kind = registered_strategy(strategy) if isinstance(strategy, str) else None
    number = len(count) if isinstance(count, list) else int(str(count)) if str(count).isdecimal() else None
    if isinstance(strategy, dict):
        strategy = _class_name(strategy)
    return [
        Setting("accelerator", device, live, live not in known.get(str(device), (live,))),
        Setting("devices", _text(count), trainer.num_devices, number not in (None, trainer.num_devices)),
        Setting(
            "strategy",
            strategy,
            type(trainer.strategy).__name__,
            kind is not None and not isinstance(trainer.strategy, kind),
        ),
        Setting("world size", None, trainer.world_size, False),
    ]


def _compared(name: str, asked: Value, live: Value) -> Setting:
    return Setting(name, asked, live, asked is not None and live is not None and asked != live)


def _at(tree: Any, *path: str) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _class_name(value: Any) -> str:
    return str(value["class_path"]).rpartition(".")[2] if isinstance(value, Mapping) and "class_path" in value else ""


def _with_parts(name: str, parts: list[str]) -> str:
    return name if parts in ([], [name]) else f"{name} of {'+'.join(parts)}"


def _options_of(optimizer: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration gives the optimizer of a group; of a split one, what it gives to both goes before."""
    both = {key: value for key, value in (optimizer.get("init_args") or {}).items() if value is not None}
    own = both.get(str(group.get("name")).partition("/")[0])
    return {**(_at(own, "init_args") or {}), **both}


def _options_named(optimizer: Any, name: str) -> Mapping[str, Any]:
    """What a configuration gives an optimizer of this class, be it the outer or an inner one."""
    options = _at(optimizer, "init_args") or {}
    for value in (optimizer, *options.values()):
        if _class_name(value) == name:
            return value.get("init_args") or {}
    return {}


def _torch_precision(device: torch.device) -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # somebody has set it for one backend, and torch no longer tells that of all
        backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
        return f"{backend.matmul.fp32_precision} on {device.type}"


def _clipping(value: Any, algorithm: Any) -> str:
    return "none" if value is None else f"{float(value):g} by {getattr(algorithm, 'value', algorithm) or 'norm'}"


def _yes(value: Any) -> str | None:
    return None if value is None else "yes" if value else "no"


def _text(value: Any) -> str | int | None:
    return value if value is None or isinstance(value, int) else str(value)
