"""The Transformer: decoders such as GPT-2 and Llama, encoders with a classification head.

Inputs are token ids [B, T], or float sequences [B, T, C]; or a dict of them under 'tokens' or
'vectors' with any of

    segments  int [B, T]: ids of the documents packed into a row, which do not see each other; 0 is
              padding.
    mask      bool [B, T]: False is padding.
    positions int [B, T]: 0 to T - 1 if not given.

Shapes: B batch, T sequence, C channels, D width, V vocabulary, O outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.errors import ConfigError, nearest
from bigjax.models.core import Model, from_linen
from bigjax.nn import blocks
from bigjax.nn.blocks import KERNEL_INIT, run_blocks
from bigjax.nn.dropout import Dropout
from bigjax.nn.linear import Dense, Embed
from bigjax.nn.positions import sinusoidal
from bigjax.schema import Positive, PositiveInt
from bigjax.sharding.rules import constrain


@dataclass(frozen=True)
class Config(blocks.Config):
    """A stack of blocks between an embedding and a head.

    attention: 'causal' sees what came before, 'bidirectional' everything.
    window: a position sees those less than this far away; None for all.
    head: 'tokens' gives logits at each position; 'mean' over positions, 'first' or 'last' position,
        padding aside, one row of outputs.
    tied: head 'tokens' multiplies by the token table.
    vocab_size: of the input; None for as many as outputs, as in language models.
    max_length: of the table of learned positions; None for the input's length.
    """

    attention: Literal['causal', 'bidirectional'] = 'causal'
    window: PositiveInt | None = None
    positions: Literal['learned', 'sinusoidal', 'rope', 'none'] = 'learned'
    rope_base: Positive = 10_000.0
    head: Literal['tokens', 'mean', 'first', 'last'] = 'tokens'
    tied: bool = True
    vocab_size: PositiveInt | None = None
    max_length: PositiveInt | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions == 'rope' and self.head_size % 2:
            raise ValueError(f"positions='rope' needs an even head size, got {self.head_size}")
        if self.positions == 'sinusoidal' and self.width % 2:
            raise ValueError(f"positions='sinusoidal' needs an even width, got {self.width}")
        if self.head == 'first' and self.attention == 'causal':
            raise ValueError(
                "head='first' sees one position only under causal attention; use 'last'"
            )


class Sequences(NamedTuple):
    """The inputs: tokens or vectors, and what may come with them."""

    tokens: Any = None
    vectors: Any = None
    segments: Any = None
    mask: Any = None
    positions: Any = None

    @classmethod
    def read(cls, inputs: Any) -> 'Sequences':
        if isinstance(inputs, Mapping):
            return cls(**inputs)
        is_tokens = jnp.issubdtype(inputs.dtype, jnp.integer)
        return cls(tokens=inputs) if is_tokens else cls(vectors=inputs)

    @property
    def length(self) -> int:
        return (self.vectors if self.tokens is None else self.tokens).shape[1]

    def visible_segments(self) -> jax.Array | None:
        """Int [B, T] with 0 for padding; None if all is one segment."""
        if self.mask is None:
            return self.segments
        return jnp.where(self.mask, 1 if self.segments is None else self.segments, 0)


def build(config: Config, inputs: Any, outputs: int, dtype: Any) -> Model:
    """Raises: ConfigError when the inputs are no sequences, or do not fit the config."""
    sequences = _checked(inputs)
    vocabulary = _vocabulary(config, sequences, outputs)
    max_length = config.max_length or sequences.length
    if max_length < sequences.length:
        raise ConfigError(
            f'config.model.max_length: expected at least {sequences.length}, the length of the '
            f'data, got {max_length}; raise it or leave it out'
        )
    return from_linen(Transformer(config, vocabulary, max_length, outputs, dtype), inputs)


def _checked(inputs: Any) -> Sequences:
    expected = 'config.model.name: transformer expects token ids [T] or vectors [T, C]'
    if isinstance(inputs, Mapping):
        for key in inputs:
            if key not in Sequences._fields:
                raise ConfigError(
                    f'{expected}, got an input {key!r}: {nearest(key, Sequences._fields)}'
                )
        if ('tokens' in inputs) == ('vectors' in inputs):
            raise ConfigError(f"{expected}, under 'tokens' or 'vectors', got {sorted(inputs)}")
    sequences = Sequences.read(inputs)
    ranks = {'vectors': 3}
    for name, array in sequences._asdict().items():
        if array is not None and len(array.shape) != ranks.get(name, 2):
            raise ConfigError(f'{expected}, got {name} of shape {array.shape[1:]}; use other data')
    return sequences


def _vocabulary(config: Config, sequences: Sequences, outputs: int) -> int | None:
    """The number of token ids; None for vectors."""
    where = 'config.model.vocab_size'
    is_tied = config.head == 'tokens' and config.tied
    if sequences.tokens is None:
        if config.vocab_size is not None:
            raise ConfigError(
                f'{where}: expected None for vectors, got {config.vocab_size}; leave it out'
            )
        if is_tied:
            raise ConfigError(
                'config.model.tied: expected False for vectors, which have no table, got True'
            )
        return None
    if config.vocab_size is None and config.head != 'tokens':
        raise ConfigError(
            f'{where}: expected the number of token ids, got None; head={config.head!r} does not '
            'tell'
        )
    if is_tied and config.vocab_size not in (None, outputs):
        raise ConfigError(
            f'{where}: expected {outputs}, the number of outputs, got {config.vocab_size};'
            ' leave it out or set tied=False'
        )
    return config.vocab_size or outputs


class Transformer(nn.Module):
    """As `Config` describes it: float32 logits [B, T, O] of head 'tokens', otherwise [B, O].

    vocabulary: of the token table; None for vectors.
    """

    config: Config
    vocabulary: int | None
    max_length: int
    outputs: int
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Any, train: bool) -> jax.Array:
        config = self.config
        sequences = Sequences.read(inputs)
        segments = sequences.visible_segments()
        if self.vocabulary is None:
            embed = Dense(config.width, ('input', 'embed'), kernel_init=KERNEL_INIT, name='embed')
            x = embed(sequences.vectors)
        else:
            table = Embed(
                self.vocabulary,
                config.width,
                embedding_init=KERNEL_INIT,
                dtype=self.dtype,
                name='embed',
            )
            x = table(sequences.tokens)
        x = self._add_positions(x, sequences.positions)
        x = run_blocks(
            Dropout(config.dropout)(x, train),
            segments,
            sequences.positions,
            config,
            causal=config.attention == 'causal',
            window=config.window,
            rope_base=config.rope_base if config.positions == 'rope' else None,
            train=train,
            dtype=self.dtype,
        )
        if config.head != 'tokens':
            x = pool(x, segments, config.head)
            return Dense(
                self.outputs, ('embed', 'output'), kernel_init=KERNEL_INIT, name='read_out'
            )(x)
        if config.tied:
            return constrain(table.attend(x), ('batch', 'sequence', 'vocab'))
        read_out = Dense(
            self.outputs,
            ('embed', 'vocab'),
            use_bias=False,
            kernel_init=KERNEL_INIT,
            dtype=self.dtype,
            result=jnp.float32,
            name='read_out',
        )
        return constrain(read_out(x), ('batch', 'sequence', 'vocab'))

    def _add_positions(self, x: jax.Array, positions: jax.Array | None) -> jax.Array:
        if positions is None:
            positions = jnp.arange(x.shape[1])[None]
        if self.config.positions == 'learned':
            table = Embed(
                self.max_length,
                x.shape[-1],
                axes=('position', 'embed'),
                embedding_init=KERNEL_INIT,
                name='positions',
            )
            return x + table(positions)
        if self.config.positions == 'sinusoidal':
            return x + sinusoidal(positions, x.shape[-1])
        return x


def pool(
    x: jax.Array, segments: jax.Array | None, how: Literal['mean', 'first', 'last']
) -> jax.Array:
    """One float32 vector a row, of positions outside segment 0: [B, T, D] -> [B, D].

    Zeros, the first or the last position where a row has no others.
    """
    x = x.astype(jnp.float32)
    real = jnp.ones(x.shape[:2], bool) if segments is None else segments != 0
    if how == 'mean':
        total = jnp.where(real[..., None], x, 0).sum(1)
        return total / jnp.maximum(real.sum(1, keepdims=True), 1)
    at = real.argmax(1) if how == 'first' else real.shape[1] - 1 - real[:, ::-1].argmax(1)
    return jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]
