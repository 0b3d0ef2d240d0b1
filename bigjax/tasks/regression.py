"""Regression of one or several numbers."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

from bigjax import losses, metrics
from bigjax.data.core import Batch, DataSpec
from bigjax.errors import ConfigError
from bigjax.schema import Positive
from bigjax.tasks.core import Apply, Losses, Task


@dataclass(frozen=True)
class Config:
    """delta: where Huber's loss turns from square to line (Huber 1964)."""

    loss: Literal['mse', 'mae', 'huber'] = 'mse'
    delta: Positive = 1.0


def build(config: Config, spec: DataSpec) -> Task:
    """Raises: ConfigError where the targets are not numbers."""
    if spec.targets.dtype.kind != 'f' or len(spec.targets.shape) > 1:
        raise ConfigError(
            'config.task.name: regression expects a float or a vector of floats a row, got '
            f'{spec.targets.dtype} of shape {spec.targets.shape}; use task classification'
        )
    return Task(
        kind='regression',
        outputs=math.prod(spec.targets.shape),
        loss=partial(loss, config),
        metrics=partial(metrics.make, kind='regression'),
        default_metrics=('mse', 'mae', 'r2'),
        predict=lambda outputs: outputs,
    )


def loss(config: Config, apply: Apply, batch: Batch) -> Losses:
    """The error [B] of each example, the mean over its outputs."""
    outputs, targets = apply(batch['inputs']), batch['targets']
    outputs = outputs.reshape(targets.shape)
    if config.loss == 'huber':
        values = losses.huber_error(outputs, targets, config.delta)
    else:
        error = losses.squared_error if config.loss == 'mse' else losses.absolute_error
        values = error(outputs, targets)
    if values.ndim > 1:
        values = values.mean(-1)
    return Losses(values, batch['weights'], outputs, targets)
