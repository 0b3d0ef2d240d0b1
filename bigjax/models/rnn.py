"""LSTM and GRU networks over sequences: floats [B, T, C] or token ids [B, T].

Shapes: B batch, T sequence, C features, D width, V vocabulary, O outputs.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.errors import ConfigError
from bigjax.models.core import Model, from_linen, require_rows
from bigjax.nn import initializers
from bigjax.nn.dropout import Dropout
from bigjax.nn.linear import Dense, Embed
from bigjax.nn.recurrent import Cell, Recurrent
from bigjax.schema import NonNegativeInt, PositiveInt, Rate


@dataclass(frozen=True)
class Config:
    """Recurrent layers of one width.

    bidirectional: each layer reads both ways and puts out 2 D features.
    dropout: of embeddings and of what each layer puts out, so between layers and not between steps
        (Zaremba et al. 2014).
    head: what the read-out sees: the state after the 'last' step of each direction, the 'mean' over
        steps, or 'all' steps one by one, as language models do.
    vocab_size: of token ids, which are embedded in D features; None for floats.
    padding_id: the token id of padding, which no layer and no head then sees.
    """

    cell: Cell = 'lstm'
    width: PositiveInt = 128
    layers: PositiveInt = 1
    bidirectional: bool = False
    dropout: Rate = 0.0
    head: Literal['last', 'mean', 'all'] = 'last'
    vocab_size: PositiveInt | None = None
    padding_id: NonNegativeInt | None = None

    def __post_init__(self) -> None:
        if self.head == 'all' and self.bidirectional:
            raise ValueError("head 'all' cannot be bidirectional: it would see what it predicts")
        if self.padding_id is not None and self.padding_id >= (self.vocab_size or 0):
            raise ValueError(f'padding_id={self.padding_id} must be below vocab_size')


def build(config: Config, inputs: Any, outputs: int, dtype: Any) -> Model:
    """Outputs are [B, O], or [B, T, O] of head 'all'.

    Raises: ConfigError when the inputs are no sequences, or vocab_size does not fit their type.
    """
    if config.vocab_size is None:
        require_rows('rnn', inputs, 2, 'sequences [T, C], or token ids [T] with a vocab_size')
    else:
        require_rows('rnn', inputs, 1, 'token ids [T], as config.model.vocab_size is set')
    if jnp.issubdtype(inputs.dtype, jnp.integer) != (config.vocab_size is not None):
        raise ConfigError(
            'config.model.vocab_size: expected for integer inputs and for no others, got'
            f' {config.vocab_size} for {inputs.dtype}'
        )
    return from_linen(RNN(config, outputs, dtype), inputs)


class RNN(nn.Module):
    """As `Config` describes it."""

    config: Config
    outputs: int
    dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        config = self.config
        x, mask, fan_in = inputs, None, 'input'
        if config.vocab_size is not None:
            init = initializers.normal(1.0)
            x = Embed(config.vocab_size, config.width, embedding_init=init, name='embed')(inputs)
            x, fan_in = Dropout(config.dropout)(x, train), 'embed'
        if config.padding_id is not None:
            mask = inputs != config.padding_id
        run = partial(Recurrent, config.cell, config.width, dtype=self.dtype)
        for layer in range(config.layers):
            if layer > 0:
                x, fan_in = Dropout(config.dropout)(x, train), 'embed'
            axes = (fan_in, 'mlp')
            steps, last = run(axes=axes, name=f'forward_{layer}')(x, mask)
            if config.bidirectional:
                back, first = run(axes=axes, reverse=True, name=f'backward_{layer}')(x, mask)
                steps, last = jnp.append(steps, back, -1), jnp.append(last, first, -1)
            x = steps
        if config.head == 'last':
            x = last
        elif config.head == 'mean':
            x = _mean(x, mask)
        x = Dropout(config.dropout)(x, train)
        return Dense(self.outputs, ('embed', 'output'), dtype=jnp.float32, name='read_out')(x)


def _mean(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The float32 mean over steps that are not padding: [B, T, D] -> [B, D]; 0 where all are."""
    valid = jnp.ones((*x.shape[:2], 1), bool) if mask is None else mask[..., None]
    count = jnp.maximum(valid.sum(1), 1)
    return jnp.where(valid, x.astype(jnp.float32), 0).sum(1) / count
