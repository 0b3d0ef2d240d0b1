"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2), in the memory that there is.

Shapes: B batch, T queries, S keys, H heads, K key heads, G = H / K, C head size, N blocks.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bigjax.errors import ConfigError
from bigjax.nn import partials
from bigjax.nn.partials import Keys, Queries, Rule
from bigjax.nn.ring import attend_around
from bigjax.sharding.rules import parts

Implementation = Literal['dense', 'chunked', 'cudnn']
"""For the fields of configs: all logits at once; block by block; cuDNN's kernels, on a GPU."""

# On a CPU all logits at once are twice as fast as blocks of them at 256 positions, a tenth faster
# at 1024, and no faster at 2048; but they take memory quadratic in the length.
DENSE_LENGTH = 512


class Dropout(NamedTuple):
    """The rate at which weights are dropped, and the key that draws which."""

    rate: float
    rng: jax.Array


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    causal: bool = False,
    window: int | None = None,
    stride: int | None = None,
    segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
    logit_soft_cap: float | None = None,
    dropout: Dropout | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """softmax(Q K' / sqrt(C)) V of query [B, T, H, C] and key, value [B, S, K, C]: [B, T, H, C].

    causal: query t sees keys s <= t.
    window: it sees keys with |t - s| < window.
    stride: it sees keys with |t - s| < stride, and every stride-th beyond (Child et al. 2019,
        section 4.2, the two patterns of 'strided' merged in each head).
    segments: int [B, T], not negative: it sees keys of its own segment, by key_segments [B, S] or
        the same. A query that sees no key gets zeros.
    logit_soft_cap: logits become cap * tanh(logits / cap) (Gemma 2, 2024, section 2).
    dropout: of the weights after softmax.
    implementation: None takes cuDNN where it can, and otherwise goes by length.

    On a mesh with an axis 'context' each device holds a part of the sequence, and keys go round.

    H is a multiple of K: each key head serves H / K heads in a row (Ainslie et al. 2023). Softmax
    is in float32.

    Raises: ConfigError when 'cudnn' is asked for what it cannot do.
    """
    rule = Rule(causal, window, stride, logit_soft_cap, dropout.rate if dropout else 0.0)
    if key_segments is None:
        key_segments = segments
    elif segments is None:
        raise ValueError('key_segments say nothing without segments')
    implementation = implementation or _fastest(query, key, rule)
    if implementation == 'cudnn':
        return _cudnn(query, key, value, rule, segments, key_segments)
    queries, keys = _heads_first(query, key, value, segments, key_segments)
    if dropout is not None:
        rows = jax.random.key_data(jax.random.split(dropout.rng, queries.vectors.shape[:-1]))
        queries = queries._replace(noise=lax.bitcast_convert_type(rows, jnp.int32))
    summed = {'dense': partials.at_once, 'chunked': partials.by_blocks}[implementation]
    if parts('sequence', query.shape[1]) > 1:
        mixed = attend_around(queries, keys, rule, summed)
    else:
        mixed = summed(queries, keys, rule).normalized()
    return _positions_first(mixed.astype(query.dtype))


def attend_cached(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    positions: jax.Array,
    key_positions: jax.Array,
    rule: Rule,
) -> jax.Array:
    """`attend` for few queries [B, T, H, C] at `positions` [B, T]: [B, T, H, C].

    keys, values: [B, K, S, C], in any order, at key_positions [B, S]; -1 marks an empty place.
    """
    grouped = _grouped(query, keys.shape[1])
    real = jnp.ones_like(positions)
    queries = Queries(grouped, positions[..., None], real[..., None])
    filled = (key_positions >= 0).astype(jnp.int32)
    seen = Keys(keys, values, key_positions[..., None], filled[..., None])
    found = partials.at_once(queries, seen, rule).normalized()
    return _positions_first(found.astype(query.dtype))


def _heads_first(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array | None,
    key_segments: jax.Array | None,
) -> tuple[Queries, Keys]:
    def at(count: int) -> jax.Array:
        return jnp.arange(count)[None, :, None]

    def column(ids: jax.Array | None) -> jax.Array | None:
        return None if ids is None else ids[..., None]

    queries = Queries(_grouped(query, key.shape[2]), at(query.shape[1]), column(segments))
    key, value = (x.transpose(0, 2, 1, 3) for x in (key, value))
    return queries, Keys(key, value, at(key.shape[2]), column(key_segments))


def _grouped(query: jax.Array, key_heads: int) -> jax.Array:
    """[B, T, H, C] -> [B, K, G, T, C], scaled by 1 / sqrt(C)."""
    batch, length, heads, size = query.shape
    grouped = query.reshape(batch, length, key_heads, heads // key_heads, size) * size**-0.5
    return grouped.transpose(0, 2, 3, 1, 4)


def _positions_first(grouped: jax.Array) -> jax.Array:
    """[B, K, G, T, C] -> [B, T, H, C]."""
    batch, _, _, length, size = grouped.shape
    return grouped.transpose(0, 3, 1, 2, 4).reshape(batch, length, -1, size)


def _fits_cudnn(query: jax.Array, key: jax.Array, rule: Rule) -> bool:
    return (
        jax.default_backend() == 'gpu'
        and query.dtype in (jnp.bfloat16, jnp.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 128
        and query.shape[1] % 2 == key.shape[1] % 2 == 0
        and rule.soft_cap is None
        and not rule.dropout
        and parts('sequence', query.shape[1]) == 1
    )


def _fastest(query: jax.Array, key: jax.Array, rule: Rule) -> Implementation:
    if _fits_cudnn(query, key, rule):
        return 'cudnn'
    length = max(query.shape[1], key.shape[1]) // parts('sequence', query.shape[1])
    return 'dense' if length <= DENSE_LENGTH else 'chunked'


def _cudnn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    rule: Rule,
    segments: jax.Array | None,
    key_segments: jax.Array | None,
) -> jax.Array:
    """cuDNN knows causal windows; segments, and windows to both sides, it is given as a mask.

    Raises: ConfigError for what it does not compute.
    """
    if not _fits_cudnn(query, key, rule):
        raise ConfigError(
            "attention_implementation: 'cudnn' expects a GPU, 16-bit precision, heads of 8 to 128,"
            ' even lengths, no soft cap, no dropout and no mesh axis context, got '
            f'{jax.default_backend()}, {query.dtype}, {query.shape[-1]}, {query.shape[1]}, '
            f'{rule.soft_cap}, {rule.dropout}, {parts("sequence", query.shape[1])}; leave it out'
        )
    mask, window = None, None
    if segments is not None or rule.stride or (rule.window and not rule.causal):
        visible = rule.visible(*_heads_first(query, key, value, segments, key_segments))
        mask = None if visible is None else visible[:, None]
    elif rule.window:
        window = (rule.window - 1, 0)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=mask,
        is_causal=rule.causal,
        local_window_size=window,
        implementation='cudnn',
    )
