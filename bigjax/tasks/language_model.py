"""Language modelling: the next token at every position."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bigjax import losses, metrics
from bigjax.data.core import Batch, DataSpec
from bigjax.errors import ConfigError
from bigjax.schema import NonNegative, PositiveInt, Rate
from bigjax.sharding.rules import by_parts
from bigjax.tasks.core import Apply, Losses, Task


@dataclass(frozen=True)
class Config:
    """z_loss: weight of the squared log-normalizer of the logits (PaLM, section 5).

    chunk: positions of each row whose logits are held at once, and computed anew in the backward
        pass; None for all.
    """

    label_smoothing: Rate = 0.0
    z_loss: NonNegative = 0.0
    chunk: PositiveInt | None = None


def build(config: Config, spec: DataSpec) -> Task:
    """Raises: ConfigError where the data has no vocabulary, or chunks do not fill its rows."""
    if spec.vocab_size is None:
        raise ConfigError('config.task.name: language_model expects token data, such as data text')
    length = spec.targets.shape[0]
    if config.chunk is not None and length % config.chunk:
        raise ConfigError(
            f'bad value for config.task.chunk: expected a divisor of {length}, the length of a row,'
            f' got {config.chunk}; use {math.gcd(length, config.chunk)}'
        )
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
        reads_parts=config.chunk is not None,
    )


def loss(config: Config, apply: Apply, batch: Batch) -> Losses:
    """Cross-entropy [B, T] of each next token; weights [B] or [B, T]."""
    targets = batch['targets']
    if config.chunk is None:
        outputs = apply(batch['inputs'])
        values = _cross_entropy(config, outputs, targets)
    else:
        hidden, read_out = apply(batch['inputs'])
        values, outputs = in_chunks(
            partial(_chunk_loss, config), config.chunk, read_out, hidden, targets
        )
    weights = batch['weights']
    if weights.ndim < values.ndim:
        weights = weights[:, None] * jnp.ones_like(values)
    return Losses(values, weights, outputs, targets)


def _chunk_loss(
    config: Config, read_out: Any, hidden: jax.Array, targets: jax.Array
) -> tuple[jax.Array, metrics.Scored]:
    logits = read_out(hidden)
    scored = metrics.score(jax.lax.stop_gradient(logits), targets)
    return _cross_entropy(config, logits, targets), scored


def in_chunks(function: Callable[..., Any], chunk: int, weights: Any, *arrays: jax.Array) -> Any:
    """`function` of `weights`, and of `chunk` positions of arrays [B, T, ...] at a time.

    What it gives of them is put together; what it computes on the way is kept for no backward pass.
    Each device goes through the chunks of its own part, so that weights are gathered once, and
    their gradients added up over devices once, not for every chunk. Where the sequence is split, a
    chunk is of all parts together.
    """
    length = arrays[0].shape[1]

    def of_part(weights: Any, *arrays: jax.Array) -> Any:
        own = arrays[0].shape[1]
        size = math.gcd(own, max(chunk * own // length, 1))

        def split(array: jax.Array) -> jax.Array:
            parts = array.reshape(-1, own // size, size, *array.shape[2:])
            return jnp.moveaxis(parts, 1, 0)

        def join(parts: jax.Array) -> jax.Array:
            return jnp.moveaxis(parts, 0, 1).reshape(-1, own, *parts.shape[3:])

        of_chunk = jax.checkpoint(function, prevent_cse=False)
        found = jax.lax.map(lambda parts: of_chunk(weights, *parts), tuple(map(split, arrays)))
        return jax.tree.map(join, found)

    return by_parts(of_part)(weights, *arrays)


def _cross_entropy(config: Config, logits: jax.Array, targets: jax.Array) -> jax.Array:
    return losses.softmax_cross_entropy(logits, targets, config.label_smoothing, config.z_loss)
