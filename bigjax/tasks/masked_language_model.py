"""Masked language modelling: tokens that were hidden, from what stands on both sides of them.

Devlin et al. 2019, section 3.1. Of each row's tokens some are chosen; of these 80 % are replaced by
the mask token, 10 % by any token of the vocabulary and 10 % stay as they are; loss and metrics are
of the chosen ones alone. The choice is of the step in training, so a text is never hidden the same
way twice, and of the text alone in evaluation. It needs a model that sees both ways: transformer
with attention='bidirectional'.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.data.core import Batch, DataSpec
from bigjax.errors import ConfigError
from bigjax.schema import NonNegativeInt, Rate
from bigjax.tasks import language_model
from bigjax.tasks.core import Task

MASKED, RANDOM = 0.8, 0.1
"""Of the chosen: the shares that become the mask token, and a random one."""


@dataclass(frozen=True)
class Config(language_model.Config):
    """rate: the share of a row's tokens that is chosen, at least one.

    mask_id: of the mask token; None for the tokenizer's own. The first id behind the vocabulary
    gives the model a row more for it.
    """

    rate: Rate = 0.15
    mask_id: NonNegativeInt | None = None


def build(config: Config, spec: DataSpec) -> Task:
    """Raises: ConfigError where the data has no vocabulary, or the vocabulary no mask token."""
    size = spec.vocab_size
    if size is None:
        raise ConfigError(
            'config.task.name: masked_language_model expects token data, such as data text'
        )
    mask = spec.special.get('mask') if config.mask_id is None else config.mask_id
    if mask is None or mask > size:
        raise ConfigError(
            f'config.task.mask_id: expected an id of the vocabulary, or {size}, the next, got '
            f'{mask}; set mask_id={size} to add a mask token'
        )
    spec = dataclasses.replace(spec, vocab_size=max(size, mask + 1), token_bytes=None)
    kept = sorted({*spec.special.values(), mask})
    hidden = partial(corrupt, rate=config.rate, mask=mask, kept=kept, vocab_size=size)
    return dataclasses.replace(language_model.build(config, spec), corrupt=hidden)


def corrupt(
    key: jax.Array,
    batch: Batch,
    *,
    rate: float,
    mask: int,
    kept: Sequence[int],
    vocab_size: int,
) -> Batch:
    """The batch with chosen tokens hidden, the true ones as targets, and weights [B, T] of those.

    Never chosen: the ids `kept`, padding (mask or segments of 0) and what has no weight. A row's
    choice depends on the key and its own tokens, not on the rows beside it.
    """
    inputs = batch['inputs'] if isinstance(batch['inputs'], Mapping) else None
    tokens = batch['inputs'] if inputs is None else inputs['tokens']
    weights = batch['weights'].reshape(len(tokens), -1) + jnp.zeros(tokens.shape)
    free = (weights > 0) & ~jnp.isin(tokens, jnp.array(kept))
    for name in ('mask', 'segments'):
        if inputs is not None and name in inputs:
            free &= inputs[name] != 0

    def of_row(key: jax.Array, tokens: jax.Array, free: jax.Array) -> tuple[jax.Array, jax.Array]:
        order, fate, other = jax.random.split(jax.random.fold_in(key, _hash(tokens)), 3)
        order = jnp.where(free, jax.random.uniform(order, tokens.shape), 1)
        count = jnp.maximum(jnp.round(rate * free.sum()), 1)
        chosen = free & (jnp.argsort(jnp.argsort(order)) < count)
        fate = jax.random.uniform(fate, tokens.shape)
        other = jax.random.randint(other, tokens.shape, 0, vocab_size, tokens.dtype)
        changed = jnp.where(fate < MASKED + RANDOM, other, tokens)
        changed = jnp.where(fate < MASKED, mask, changed)
        return chosen, jnp.where(chosen, changed, tokens)

    chosen, changed = jax.vmap(of_row, (None, 0, 0))(key, tokens, free)
    return {
        'inputs': changed if inputs is None else {**inputs, 'tokens': changed},
        'targets': tokens,
        'weights': weights * chosen,
    }


def _hash(tokens: jax.Array) -> jax.Array:
    """Uint32 [] of tokens [T]: a polynomial modulo 2^32 (Knuth's multiplier, 6.4)."""
    powers = np.cumprod(np.full(tokens.shape, 2654435761, np.uint32), dtype=np.uint32)
    return jnp.sum((tokens.astype(jnp.uint32) + 1) * powers, dtype=jnp.uint32)
