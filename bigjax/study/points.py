"""Points of a study: which settings are tried, as plain lists of dicts.

A point overrides fields of a config: `{'optimizer.learning_rate': 0.1, 'seed': 0}`; its key
'config' names another config file. Lists are joined with `+` and thinned by comprehensions, and
functions of a budget are Python:

    grid({'optimizer.learning_rate': [0.1, 0.3], 'seed': range(3)})
    [{**point, 'train.steps': budget // (6 * point['model.width'])} for point in ...]
"""

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.config_file import run_file
from bigjax.errors import ConfigError, nearest

Point = dict[str, Any]
Draw = Callable[[np.random.Generator], float]

EXPERIMENTS = Path('experiments')
CONFIG = 'config'
"""The key of a point that is no field: FILE[:ARG], from the folder of the study if it is there."""


def grid(values: Mapping[str, Iterable[Any]]) -> list[Point]:
    """Every combination; the last key turns fastest."""
    return [
        dict(zip(values, combination, strict=True))
        for combination in itertools.product(*values.values())
    ]


def zipped(values: Mapping[str, Iterable[Any]]) -> list[Point]:
    """The first value of each key, then the second of each. Raises: ConfigError."""
    columns = {key: list(column) for key, column in values.items()}
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f'zipped: expected as many values of each key, got {lengths}')
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def sample(count: int, values: Mapping[str, Draw | Sequence[Any]], seed: int = 0) -> list[Point]:
    """`count` points at random: each key from its `uniform` or `log_uniform`, or one of a list.

    A longer sample begins with the shorter one.
    """
    rng = np.random.default_rng(seed)
    return [
        {
            key: among(rng) if callable(among) else among[int(rng.integers(len(among)))]
            for key, among in values.items()
        }
        for _ in range(count)
    ]


def uniform(low: float, high: float) -> Draw:
    """Between two numbers."""
    return lambda rng: float(rng.uniform(low, high))


def log_uniform(low: float, high: float) -> Draw:
    """Between two positive numbers, uniform in the logarithm."""
    return lambda rng: math.exp(rng.uniform(math.log(low), math.log(high)))


def find(name: str, files: Sequence[str]) -> Path:
    """The file of an experiment, the first of `files` that its folder has; `name` is a path, or
    the name of a folder in `experiments/`. Raises: ConfigError."""
    for folder in (Path(name), EXPERIMENTS / name):
        for file in files:
            if (folder / file).is_file():
                return folder / file
    known = {path.parent.name for file in files for path in EXPERIMENTS.glob(f'*/{file}')}
    raise ConfigError(f'no {" or ".join(files)} in {EXPERIMENTS / name}; {nearest(name, known)}')


def read(file: Path, smoke: bool) -> list[Point]:
    """What `points()`, or `points(smoke)`, of a Python file gives. Raises: ConfigError."""
    points = run_file(file, 'points').points
    return points(smoke) if inspect.signature(points).parameters else points()
