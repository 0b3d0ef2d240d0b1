"""LSTM and GRU networks over sequences: floats [B, T, C] or token ids [B, T].

Shapes: B batch, T sequence, C features, D width, V vocabulary, O outputs.
"""

from dataclasses import dataclass
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
        directions = ('forward', 'backward') if config.bidirectional else ('forward',)
        for layer in range(config.layers):
            if layer > 0:
                x, fan_in = Dropout(config.dropout)(x, train), 'embed'
            runs = [
                Recurrent(
                    config.cell,
                    config.width,
                    reverse=direction == 'backward',
                    axes=(fan_in, 'mlp'),
                    dtype=self.dtype,
                    name=f'{direction}_{layer}',
                )(x, mask)
                for direction in directions
            ]
            x, last = (jnp.concatenate(arrays, axis=-1) for arrays in zip(*runs, strict=True))
        if config.head == 'last':
            x = last
        elif config.head == 'mean':
            x = _mean(x, mask)
        x = Dropout(config.dropout)(x, train)
        return Dense(self.outputs, ('embed', 'output'), dtype=jnp.float32, name='read_out')(x)


def _mean(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The float32 mean over steps that are not padding: [B, T, D] -> [B, D]; 0 where all are."""
    x = x.astype(jnp.float32)
    if mask is None:
        return x.mean(1)
    count = jnp.maximum(mask.sum(1, keepdims=True), 1)
    return jnp.where(mask[..., None], x, 0).sum(1) / count
