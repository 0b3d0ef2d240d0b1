"""Classification: binary (one logit), multi-class (one of C) and multi-label (any of C)."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from bigjax import losses, metrics
from bigjax.data.core import Batch, DataSpec
from bigjax.errors import ConfigError
from bigjax.schema import Positive, Rate
from bigjax.tasks.core import Apply, Losses, Task

Kind = Literal['binary', 'multiclass', 'multilabel']

DEFAULT_METRICS = {
    'binary': ('accuracy', 'precision', 'recall', 'f1', 'auc', 'average_precision'),
    'multiclass': ('accuracy', 'f1_macro'),
    'multilabel': ('subset_accuracy', 'label_accuracy', 'f1_micro', 'f1_macro', 'auc'),
}


@dataclass(frozen=True)
class Config:
    """kind: by default binary for two classes, multi-class for more, multi-label never.

    class_weights: one a class, in the order of the ids; an example weighs what its class weighs.
    """

    kind: Kind | None = None
    label_smoothing: Rate = 0.0
    class_weights: tuple[Positive, ...] = ()


def build(config: Config, spec: DataSpec) -> Task:
    """Raises: ConfigError where the data's targets are not those of the kind."""
    classes = spec.num_classes
    if classes is None:
        raise ConfigError(
            'config.task.name: classification needs targets with classes, and this data has '
            f'{spec.targets.dtype} targets; use task regression'
        )
    kind = config.kind or ('binary' if classes == 2 and not spec.targets.shape else 'multiclass')
    if kind == 'binary' and classes != 2:
        raise ConfigError(f'config.task.kind: binary expects 2 classes, this data has {classes}')
    if kind == 'multilabel' and spec.targets.shape != (classes,):
        raise ConfigError(
            f'config.task.kind: multilabel expects a 0 or 1 for each of {classes} labels, '
            f'got targets of shape {spec.targets.shape}'
        )
    if config.class_weights and len(config.class_weights) != classes:
        raise ConfigError(
            f'config.task.class_weights: expected {classes} (one a class), '
            f'got {len(config.class_weights)}'
        )
    read_out = 1 if kind == 'binary' else classes
    return Task(
        kind=kind,
        outputs=read_out,
        loss=partial(loss, config, kind),
        metrics=partial(metrics.make, kind=kind, num_classes=classes),
        default_metrics=DEFAULT_METRICS[kind],
        predict=partial(predict, kind),
        train_metrics=('label_accuracy',) if kind == 'multilabel' else ('accuracy',),
    )


def loss(config: Config, kind: str, apply: Apply, batch: Batch) -> Losses:
    """Cross-entropy [B] of each example: over classes, or the mean over its C labels."""
    outputs, targets = apply(batch['inputs']), batch['targets']
    if kind == 'multiclass':
        values = losses.softmax_cross_entropy(outputs, targets, config.label_smoothing)
        chances = targets if targets.ndim > 1 else jax.nn.one_hot(targets, outputs.shape[-1])
    elif kind == 'binary':
        outputs = outputs[..., 0]
        if targets.ndim > outputs.ndim:  # mixed-up targets come as the chances of both classes
            targets = targets[..., 1]
        values = losses.sigmoid_cross_entropy(outputs, targets, config.label_smoothing)
        chances = jnp.stack([1 - targets, targets], axis=-1).astype(jnp.float32)
    else:
        values = losses.sigmoid_cross_entropy(outputs, targets, config.label_smoothing).mean(-1)
        chances = targets.astype(jnp.float32)
    weights = batch['weights']
    if config.class_weights:
        weights = weights * (chances @ jnp.array(config.class_weights, jnp.float32))
    return Losses(values, weights, outputs, targets)


def predict(kind: str, outputs: jax.Array) -> jax.Array:
    """Probabilities [B, C] of each class (binary: of both, from [B, 1]), or of each label."""
    if kind == 'multiclass':
        return jax.nn.softmax(outputs)
    chances = jax.nn.sigmoid(outputs)
    return jnp.concatenate([1 - chances, chances], axis=-1) if kind == 'binary' else chances
