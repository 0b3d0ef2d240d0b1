"""Language modelling: the next token at every position."""

from dataclasses import dataclass
from functools import partial

import jax

from bigjax import losses, metrics
from bigjax.data.core import Batch, DataSpec
from bigjax.errors import ConfigError
from bigjax.schema import NonNegative, Rate
from bigjax.tasks.core import Apply, Losses, Task


@dataclass(frozen=True)
class Config:
    """z_loss: weight of the squared log-normalizer of the logits (PaLM, section 5)."""

    label_smoothing: Rate = 0.0
    z_loss: NonNegative = 0.0


def build(config: Config, spec: DataSpec) -> Task:
    """Raises: ConfigError where the data has no vocabulary."""
    if spec.vocab_size is None:
        raise ConfigError('config.task.name: language_model expects token data, such as data text')
    bits = () if spec.token_bytes is None else ('bits_per_byte',)
    return Task(
        kind='language_model',
        outputs=spec.vocab_size,
        loss=partial(loss, config),
        metrics=partial(
            metrics.make,
            kind='language_model',
            num_classes=spec.vocab_size,
            token_bytes=spec.token_bytes,
        ),
        default_metrics=('perplexity', 'accuracy', *bits),
        predict=jax.nn.softmax,
        train_metrics=('accuracy',),
    )


def loss(config: Config, apply: Apply, batch: Batch) -> Losses:
    """Cross-entropy [B, T] of each next token; weights [B] or [B, T]."""
    outputs, targets = apply(batch['inputs']), batch['targets']
    values = losses.softmax_cross_entropy(outputs, targets, config.label_smoothing, config.z_loss)
    weights = batch['weights']
    if weights.ndim < values.ndim:
        weights = weights[:, None] * jax.numpy.ones_like(values)
    return Losses(values, weights, outputs, targets)
