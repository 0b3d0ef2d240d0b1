"""The contract of a task: from a batch to a weighted loss, and what is measured.

A task named `classification` is the module `bigjax.tasks.classification`; any other name is a module of
the user's own. Such a module defines `Config`, a frozen dataclass, and `build(config, spec) -> Task`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from bigjax.data.core import Batch
from bigjax.metrics import Metric

Apply = Callable[[Any], Any]
"""The model with its variables, mode and random streams already given: inputs -> outputs."""


@dataclass(frozen=True)
class Losses:
    """Of one batch: unreduced losses and their weights (same shape), and the model's outputs.

    The training loss is `sum(values * weights) / sum(weights)` over the whole global batch, whatever
    the number of microbatches, devices or processes.
    """

    values: jax.Array
    weights: jax.Array
    outputs: jax.Array


@dataclass(frozen=True)
class Task:
    """outputs: width of the model's read-out.

    loss: (apply, batch) -> Losses; it calls the model as it likes.
    metrics: the metric of that name, or a ConfigError; `default_metrics` when the config names none.
    predict: outputs [B, ...] -> what a person would read, for sample predictions: class probabilities
        [B, C], or values.
    """

    outputs: int
    loss: Callable[[Apply, Batch], Losses]
    metric: Callable[[str], Metric]
    default_metrics: tuple[str, ...]
    predict: Callable[[jax.Array], jax.Array]
    describe: Mapping[str, Any] | None = None
