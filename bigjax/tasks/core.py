"""The contract of a task: from a batch to a weighted loss, and what is measured.

A task named `classification` is the module `bigjax.tasks.classification`; any other name is a
module of the user's own. Such a module defines `Config`, a frozen dataclass, and `build(config,
spec) -> Task`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from bigjax.data.core import Batch
from bigjax.metrics import MetricGroup

Apply = Callable[[Any], Any]
"""The model with its variables, mode and random streams already given: inputs -> outputs, or its
parts where the task reads those."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Losses:
    """Of one batch: unreduced losses, their weights (same shape), and what the metrics compare:
    outputs (or tokens `metrics.Scored`) with targets.

    The training loss is `sum(values * weights) / sum(weights)` over the whole global batch,
    whatever the number of microbatches, devices or processes.
    """

    values: jax.Array
    weights: jax.Array
    outputs: Any
    targets: jax.Array


@dataclass(frozen=True)
class Task:
    """What a model is trained to do.

    kind: a key of `metrics.KINDS`, which also says how predictions are shown.
    outputs: width of the model's read-out.
    loss: (apply, batch) -> Losses; it calls the model as it likes. The metrics get `outputs`,
        `targets` and the batch's own weights.
    metrics: names -> the groups that compute them, or a ConfigError.
    default_metrics: measured when the config names none; train_metrics: at every logged step.
    corrupt: (key, batch) -> the batch that the loss is of, where the task itself changes it; with a
        key of the step in training, always the same one in evaluation.
    reads_parts: whether `apply` is to give hidden states and a read-out (`Model.parts`).
    predict: outputs -> what a person reads: class probabilities [B, C], or values [B, O].
    """

    kind: str
    outputs: int
    loss: Callable[[Apply, Batch], Losses]
    metrics: Callable[[Sequence[str]], dict[str, MetricGroup]]
    default_metrics: tuple[str, ...]
    predict: Callable[[jax.Array], jax.Array]
    train_metrics: tuple[str, ...] = ()
    corrupt: Callable[[jax.Array, Batch], Batch] | None = None
    reads_parts: bool = False
