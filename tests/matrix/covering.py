"""Which cells there are, and the covering set that every change must pass."""

from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from itertools import combinations, product

import yaml

from tests.matrix.cells import AVERAGES, CONFIGS, LOGGERS, PRECISIONS, Cell, files

AXES = {
    "precision": PRECISIONS,
    "ranks": (1, 2),
    "workers": (0, 2),
    "logger": LOGGERS,
    "accumulate": (1, 2),
    "averaging": AVERAGES,
}
OVERLAID = {  # an overlay, and the experiments that it is added to
    "callbacks/kv_check": ["demo"],
    "cv/align_hand": ["svae_noise_small", "svae_cifar"],
    "cv/soft_hand": ["svae_noise", "svae_freckles"],
    "implant/random": ["vae_implanted"],
    "implant/shuffled": ["vae_implanted"],
    "optimizer/adamw": ["svae_cifar"],
    "optimizer/muon": ["demo_svd", "vae_plain"],
    "optimizer/rekls": ["svae_noise_small"],
    "optimizer/soap": ["demo_svd", "svae_noise_small"],
}
OVERLAYS, BASES = [], []
for path in sorted(CONFIGS.rglob("*.yaml")):
    name = str(path.relative_to(CONFIGS).with_suffix(""))
    (BASES if "data" in yaml.safe_load(path.read_text()) else OVERLAYS).append(name)
EXPERIMENTS = BASES + [f"{base}+{overlay}" for overlay in OVERLAYS for base in OVERLAID[overlay]]


def classes(config: object) -> list[str]:
    """All that a configuration is made of."""
    parts = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
    named = [config["class_path"]] if isinstance(config, dict) and "class_path" in config else []
    return sorted([*named, *(name for part in parts for name in classes(part))])


def one_of_each_kind(names: Iterable[str]) -> list[str]:
    """Of experiments that are made of the same classes, and differ in numbers alone, the last."""
    made = {name: [classes(yaml.safe_load(file.read_text())) for file in files(name)] for name in names}
    return list({str(parts): name for name, parts in made.items()}.values())


def every_class(names: Iterable[str]) -> list[str]:
    """Of experiments some in which every class occurs that occurs in any."""
    read = {name: [yaml.safe_load(file.read_text()) for file in files(name)] for name in names}
    made = {name: {part for config in configs for part in classes(config)} for name, configs in read.items()}
    found: list[str] = []
    while missing := set().union(*made.values()).difference(*(made[name] for name in found)):
        found.append(max(made, key=lambda name: len(made[name] & missing)))
    return found


def whole() -> Iterator[Cell]:
    """Every experiment with every choice."""
    for experiment, *chosen in product(EXPERIMENTS, *AXES.values()):
        yield Cell(experiment, *chosen)


def covering(experiment: str) -> list[Cell]:
    """An experiment at every precision in one process, and at one of them on two ranks; the rest goes round.

    Accumulation and averaging are one choice for all of them, so that they share a reference; over the experiments all
    pairs of choices come up, which a test counts.
    """
    number = EXPERIMENTS.index(experiment)
    shared = Cell(experiment, accumulate=1 + number % 2, averaging=AVERAGES[number // 2 % 3])
    cells = [  # the first of which is the reference of all
        replace(shared, precision=precision, workers=2 * ((number + turn) % 2), logger=LOGGERS[(number + turn) % 3])
        if precision != shared.precision
        else shared
        for turn, precision in enumerate(PRECISIONS)
    ]
    turn = number // 2
    both = replace(shared, precision=PRECISIONS[number % 5], workers=2 * (turn % 2), logger=LOGGERS[turn // 2 % 3])
    return [*cells, replace(both, ranks=2)]


def quick(experiment: str) -> list[Cell]:
    """What of the covering set `make test-all` runs: all of one experiment of each kind, of the others 32-true.

    On a CPU 16-mixed runs as bf16-mixed, so that a few experiments are enough for it.
    """
    cells = covering(experiment)
    if experiment not in KINDS:
        return [cell for cell in cells if cell.ranks == 1 and cell.precision == "32-true"]
    alike = KINDS.index(experiment) % 4 > 0
    return [cell for cell in cells if cell.ranks > 1 or not (alike and cell.precision == "16-mixed")]


def pairs(cells: list[Cell]) -> set[tuple[tuple[str, object], tuple[str, object]]]:
    """Which two choices meet in some cell."""
    names = [field.name for field in fields(Cell) if field.name != "experiment"]
    return {((a, getattr(cell, a)), (b, getattr(cell, b))) for cell in cells for a, b in combinations(names, 2)}


def short() -> list[Cell]:
    """What of that `make test` runs: the reference of every experiment, and cells until all pairs of choices meet."""
    cells = [cell for experiment in EXPERIMENTS for cell in quick(experiment)]
    found = [cell for cell in cells if cell == cell.reference]
    while missing := pairs(cells) - pairs(found):
        found.append(max(cells, key=lambda cell: len(pairs([cell]) & missing)))
    return found


KINDS = one_of_each_kind(EXPERIMENTS)
SHORT = short()
