"""The Transformer: decoders such as GPT-2 and Llama, encoders such as BERT, with any head.

Inputs are token ids [B, T], or float sequences [B, T, C]; or a dict of them under 'tokens' or
'vectors' with any of

    segments    int [B, T]: ids of the documents packed into a row, which do not see each other; 0
                is padding.
    mask        bool [B, T]: False is padding.
    positions   int [B, T]: 0 to T - 1 if not given.
    token_types int [B, T]: 0 if not given (BERT's sentence A and B).
    at          int [B]: head 'tokens' reads this position only, and gives [B, 1, O].

With a collection 'cache' among the variables, from `empty_cache`, a decoder writes on from what it
has read: first the prompts at once, then a position at a time.

Shapes: B batch, T sequence, C channels, D width, V vocabulary, O outputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from bigjax.errors import ConfigError, nearest
from bigjax.models.core import Model, Variables, applied, from_linen
from bigjax.nn import blocks
from bigjax.nn.activations import ACTIVATIONS
from bigjax.nn.blocks import KERNEL_INIT, Sight, make_block_norm, run_blocks
from bigjax.nn.dropout import Dropout
from bigjax.nn.initializers import zeros
from bigjax.nn.linear import Dense, Embed
from bigjax.nn.multipliers import STANDARD, Multipliers, times
from bigjax.nn.params import param
from bigjax.nn.positions import Frequencies, Scaling, sinusoidal
from bigjax.schema import Positive, PositiveInt
from bigjax.sharding.rules import constrain


@dataclass(frozen=True)
class Config(blocks.Config):
    """A stack of blocks between an embedding and a head.

    attention: 'causal' sees what came before, 'bidirectional' everything.
    window: a position sees those less than this far away; None for all.
    stride: and every stride-th beyond; see `nn.attend`.
    token_types: how many there are to embed; None for none.
    embedding_norm: normalise the sum of the embeddings (BERT).
    head: 'tokens' gives logits at each position; 'mean' over positions, 'first' or 'last' position,
        padding aside, one row of outputs; 'none' the last hidden states.
    pooler: a dense layer and tanh between the pooled position and the read-out (BERT).
    head_transform: a dense layer, activation and norm before head 'tokens', and a bias behind
        (BERT's masked language model).
    tied: head 'tokens' multiplies by the token table.
    logit_soft_cap: logits of head 'tokens' become cap * tanh(logits / cap).
    vocab_size: of the input; None for as many as outputs, as in language models. A table with more
        rows than there are outputs has spare ones, as padding to a round number.
    max_length: of the table of learned positions; None for the input's length.
    """

    attention: Literal['causal', 'bidirectional'] = 'causal'
    window: PositiveInt | None = None
    stride: PositiveInt | None = None
    positions: Literal['learned', 'sinusoidal', 'rope', 'none'] = 'learned'
    rope_base: Positive = 10_000.0
    rope_scaling: Scaling | None = None
    token_types: PositiveInt | None = None
    embedding_norm: bool = False
    head: Literal['tokens', 'mean', 'first', 'last', 'none'] = 'tokens'
    pooler: bool = False
    head_transform: bool = False
    tied: bool = True
    logit_soft_cap: Positive | None = None
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

    @property
    def sight(self) -> Sight:
        rope = Frequencies(self.rope_base, self.rope_scaling) if self.positions == 'rope' else None
        return Sight(self.attention == 'causal', self.window, self.stride, rope)


def empty_cache(config: Config, batch: int, length: int, dtype: Any) -> Any:
    """The collection 'cache' before the first token of up to `length`.

    Where a window hides what is further back, its places are used again.
    """
    places = min(length, config.window or length)
    return blocks.empty_cache(config, batch, places, dtype)


class Sequences(NamedTuple):
    """The inputs: tokens or vectors, and what may come with them."""

    tokens: Any = None
    vectors: Any = None
    segments: Any = None
    mask: Any = None
    positions: Any = None
    token_types: Any = None
    at: Any = None

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


def build(
    config: Config,
    inputs: Any,
    outputs: int,
    dtype: Any,
    multipliers: Multipliers = STANDARD,
) -> Model:
    """Raises: ConfigError when the inputs are no sequences, or do not fit the config."""
    sequences = _checked(inputs)
    vocabulary = _vocabulary(config, sequences, outputs)
    max_length = config.max_length or sequences.length
    if max_length < sequences.length:
        raise ConfigError(
            f'config.model.max_length: expected at least {sequences.length}, the length of the '
            f'data, got {max_length}; raise it or leave it out'
        )
    module = Transformer(config, vocabulary, max_length, outputs, dtype, multipliers)
    return as_model(module, inputs)


def as_model(module: 'Transformer', inputs: Any) -> Model:
    """The module as plain functions; one that predicts what comes next can also write on."""
    config = module.config
    model = replace(from_linen(module, inputs), sequence=Sequences.read(inputs).length)
    if config.head == 'tokens':
        model = replace(model, parts=_parts(module))
    context = module.max_length if config.positions == 'learned' else None
    if config.head != 'tokens' or config.attention != 'causal' or module.vocabulary is None:
        return model
    cache = partial(empty_cache, config, dtype=module.dtype)
    return replace(model, empty_cache=cache, context=context)


def _parts(module: 'Transformer') -> Callable[..., Any]:
    """See `Model.parts`."""
    trunk = applied(module.clone(config=replace(module.config, head='none')))
    head = Head(
        module.config,
        module.vocabulary,
        module.max_length,
        module.outputs,
        module.dtype,
        module.multipliers,
    )
    hidden = jax.ShapeDtypeStruct((1, 1, module.config.width), jnp.float32)
    names = jax.eval_shape(head.init, jax.random.key(0), hidden)['params'].keys()

    def parts(variables: Variables, *args: Any, **kwargs: Any) -> tuple[Any, Variables]:
        hidden, changed = trunk(variables, *args, **kwargs)
        own = {name: leaf for name, leaf in variables['params'].items() if name in names}
        return (hidden, Partial(lambda own, x: head.apply({'params': own}, x), own)), changed

    return parts


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
    ranks = {'vectors': 3, 'at': 1}
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
    if is_tied and (config.vocab_size or outputs) < outputs:
        raise ConfigError(
            f'{where}: expected at least {outputs}, the number of outputs, got {config.vocab_size};'
            ' leave it out or set tied=False'
        )
    return config.vocab_size or outputs


class Transformer(nn.Module):
    """As `Config` describes it: float32 logits [B, T, O] of head 'tokens', hidden states [B, T, D]
    of head 'none', otherwise [B, O].

    vocabulary: of the token table; None for vectors.
    """

    config: Config
    vocabulary: int | None
    max_length: int
    outputs: int
    dtype: Any = jnp.float32
    multipliers: Multipliers = STANDARD

    @nn.compact
    def __call__(self, inputs: Any, train: bool = False) -> jax.Array:
        config = self.config
        sequences = Sequences.read(inputs)
        segments = sequences.visible_segments()
        table = None
        if self.vocabulary is None:
            embed = Dense(config.width, ('input', 'embed'), kernel_init=KERNEL_INIT, name='embed')
            x = embed(sequences.vectors)
        else:
            table = self._table('embed', self.vocabulary, ('vocab', 'embed'))
            x = table(sequences.tokens)
        x = self._add_positions(x, sequences.positions)
        if config.token_types is not None:
            types = sequences.token_types
            types = jnp.zeros(x.shape[:2], jnp.int32) if types is None else types
            x = x + self._table('token_types', config.token_types, ('token_type', 'embed'))(types)
        if config.embedding_norm:
            x = make_block_norm(config, 'embedding_norm', self.dtype)(x)
        x = times(x, self.multipliers.embedding)
        x = run_blocks(
            Dropout(config.dropout)(x, train),
            segments,
            sequences.positions,
            config,
            config.sight,
            train=train,
            dtype=self.dtype,
            multipliers=self.multipliers,
        )
        if config.head == 'none':
            return x.astype(jnp.float32)
        if config.head == 'tokens':
            return self._logits(x, sequences.at, table)
        x = pool(x, segments, config.head)
        if config.pooler:
            x = jnp.tanh(self._dense('pooler')(x).astype(jnp.float32))
            x = Dropout(config.dropout)(x, train)
        x = times(x, self.multipliers.read_out)
        return Dense(self.outputs, ('embed', 'output'), kernel_init=KERNEL_INIT, name='read_out')(x)

    def _add_positions(self, x: jax.Array, positions: jax.Array | None) -> jax.Array:
        if positions is None:
            positions = jnp.arange(x.shape[1])[None]
        if self.config.positions == 'learned':
            return x + self._table('positions', self.max_length, ('position', 'embed'))(positions)
        if self.config.positions == 'sinusoidal':
            return x + sinusoidal(positions, x.shape[-1]).astype(x.dtype)
        return x

    def _logits(self, x: jax.Array, at: jax.Array | None, table: Embed | None) -> jax.Array:
        config = self.config
        if at is not None:
            x = jnp.take_along_axis(x, at[:, None, None], axis=1)
        if config.head_transform:
            x = ACTIVATIONS[config.activation](self._dense('head')(x))
            x = make_block_norm(config, 'head_norm', self.dtype)(x)
        x = times(x, self.multipliers.read_out)
        if config.tied:
            assert table is not None
            logits = table.attend(x)[..., : self.outputs]
        else:
            logits = Dense(
                self.outputs,
                ('embed', 'vocab'),
                use_bias=False,
                kernel_init=KERNEL_INIT,
                dtype=self.dtype,
                result=jnp.float32,
                name='read_out',
            )(x)
        if config.head_transform:
            logits += param(self, 'head_bias', zeros, (self.outputs,), ('vocab',))[None, None]
        if config.logit_soft_cap is not None:
            logits = config.logit_soft_cap * jnp.tanh(logits / config.logit_soft_cap)
        return constrain(logits, ('batch', 'sequence', 'vocab'))

    def _table(self, name: str, rows: int, axes: tuple[str, str]) -> Embed:
        width = self.config.width
        return Embed(
            rows, width, axes=axes, embedding_init=KERNEL_INIT, dtype=self.dtype, name=name
        )

    def _dense(self, name: str) -> Dense:
        """From the width to the width."""
        return Dense(
            self.config.width,
            ('embed', 'mlp'),
            kernel_init=KERNEL_INIT,
            dtype=self.dtype,
            name=name,
        )


class Head(Transformer):
    """Its head 'tokens' alone, under the same parameters: hidden states to logits."""

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        table = None
        if self.config.tied and self.vocabulary is not None:
            table = self._table('embed', self.vocabulary, ('vocab', 'embed'))
        return self._logits(inputs, None, table)


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
