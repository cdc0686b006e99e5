"""Options that have no effect beside others: said before a training, one sentence each."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from eigenscope.cli.errors.config_sources import Key, Source
from eigenscope.cli.errors.suggestions import listed


def without_effect(config: Mapping[str, Any], given: Collection[Key]) -> list[str]:
    """What a ``fit`` was asked for and will not do.

    Args:
        config: resolved, as nested dictionaries and lists.
        given: the keys that a file or an option sets, without ``init_args``.
    """
    return [sentence for rule in _RULES for sentence in rule(config, config["trainer"], given)]


def twice(callbacks: Any, given: Collection[Source]) -> str | None:
    """A callback that a resolved configuration holds twice, with the same arguments, as a sentence with its sources."""
    seen: list[Any] = []
    for callback in callbacks if isinstance(callbacks, list) else []:
        if callback in seen:
            name = callback["class_path"].rpartition(".")[2]
            key = ("trainer", "callbacks")
            holding = [each.text for each in given if name in f"{each.settings.get(key)} {each.added.get(key)}"]
            where = f" ({listed(list(dict.fromkeys(holding)), 'and')})" if holding else ""
            return f"trainer.callbacks holds {name} twice, with the same arguments{where}: give it once"
        seen.append(callback)
    return None


def monitors(config: Mapping[str, Any]) -> dict[str, str]:
    """The names of monitored metrics in a resolved configuration, and which class monitors each first."""
    found: dict[str, str] = {}
    callbacks = config["trainer"].get("callbacks") or []
    scheduler = (config.get("model") or {}).get("init_args", {}).get("lr_scheduler")
    for part in [*(callbacks if isinstance(callbacks, list) else [callbacks]), scheduler]:
        monitor = part.get("init_args", {}).get("monitor") if isinstance(part, Mapping) else None
        name = monitor.get("name") if isinstance(monitor, Mapping) else monitor
        if isinstance(name, str):
            found.setdefault(name, part["class_path"].rpartition(".")[2])
    return found


def _nothing_trained(config: Any, trainer: Any, given: Collection[Key]) -> Iterator[str]:
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if trainer.get(name) == 0:
            yield f"trainer.{name} is 0: nothing is trained"


def _no_validation(config: Any, trainer: Any, given: Collection[Key]) -> Iterator[str]:
    interval, epochs = trainer.get("check_val_every_n_epoch"), trainer.get("max_epochs")
    if trainer.get("limit_val_batches") == 0:
        why = "trainer.limit_val_batches is 0"
    elif interval is not None and epochs is not None and 0 < epochs < interval:
        why = f"trainer.check_val_every_n_epoch is {interval}, and trainer.max_epochs {epochs}"
    else:
        return
    if trainer.get("fast_dev_run"):
        return
    waiting = {who: name for name, who in monitors(config).items() if name.startswith("val")}
    without = f": nothing chooses an epoch by {listed(dict.fromkeys(waiting.values()))}" if waiting else ""
    yield f"no epoch is validated, because {why}{without}"


def _shorter_than_asked(config: Any, trainer: Any, given: Collection[Key]) -> Iterator[str]:
    for name in ("epochs", "steps"):
        low, high = trainer.get(f"min_{name}"), trainer.get(f"max_{name}")
        if low is not None and high is not None and 0 <= high < low:
            yield f"trainer.min_{name} {low} has no effect: trainer.max_{name} {high} ends the training before"


def _clipping(config: Any, trainer: Any, given: Collection[Key]) -> Iterator[str]:
    if ("trainer", "gradient_clip_algorithm") in given and not trainer.get("gradient_clip_val"):
        yield "trainer.gradient_clip_algorithm has no effect without trainer.gradient_clip_val"


def _skipping(config: Any, trainer: Any, given: Collection[Key]) -> Iterator[str]:
    policy = config["finite_guard"]["policy"]
    if ("finite_guard", "max_skipped") in given and policy != "skip":
        yield f"finite_guard.max_skipped has no effect: finite_guard.policy is {policy}, not skip"


def _folder(config: Any, trainer: Any, given: Collection[Key]) -> Iterator[str]:
    logger = trainer.get("logger")
    place = logger.get("init_args", {}).get("save_dir") if isinstance(logger, Mapping) else None
    root = trainer.get("default_root_dir")
    if ("trainer", "default_root_dir") in given and place is not None and root not in (None, place):
        yield (
            f"trainer.default_root_dir {root} has no effect: the logger writes to {place} "
            "(trainer.logger.init_args.save_dir)"
        )


def _other_subcommands(config: Any, trainer: Any, given: Collection[Key]) -> Iterator[str]:
    if ("trainer", "limit_predict_batches") in given:
        yield "trainer.limit_predict_batches has no effect in fit, only in predict"


_RULES = (_nothing_trained, _no_validation, _shorter_than_asked, _clipping, _skipping, _folder, _other_subcommands)
