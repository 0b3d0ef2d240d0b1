"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2), in the memory that there is.

Shapes: B batch, T queries, S keys, H heads, K key heads, G = H / K, C head size, N blocks.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bigjax.errors import ConfigError
from bigjax.nn.linear import SUM_IN_FLOAT32

Implementation = Literal['dense', 'chunked', 'cudnn']
"""For the fields of configs: all logits at once; block by block; cuDNN's kernels, on a GPU."""

BLOCK = 512
LOWEST = -1e30
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

    H is a multiple of K: each key head serves H / K heads in a row (Ainslie et al. 2023). Softmax
    is in float32.

    Raises: ConfigError when 'cudnn' is asked for what it cannot do.
    """
    rule = Rule(causal, window, stride, logit_soft_cap, dropout)
    if key_segments is None:
        key_segments = segments
    elif segments is None:
        raise ValueError('key_segments say nothing without segments')
    implementation = implementation or _fastest(query, key, rule)
    if implementation == 'cudnn':
        return _cudnn(query, key, value, rule, segments, key_segments)
    queries, keys = _heads_first(query, key, value, segments, key_segments)
    compute = {'dense': _dense, 'chunked': _chunked}[implementation]
    return _positions_first(compute(queries, keys, rule).astype(query.dtype))


def attend_cached(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    positions: jax.Array,
    key_positions: jax.Array,
    rule: 'Rule',
) -> jax.Array:
    """`attend` for few queries [B, T, H, C] at `positions` [B, T]: [B, T, H, C].

    keys, values: [B, K, S, C], in any order, at key_positions [B, S]; -1 marks an empty place.
    """
    grouped = _grouped(query, keys.shape[1])
    real = jnp.ones_like(positions)
    queries = Queries(grouped, positions[..., None], real[..., None])
    filled = (key_positions >= 0).astype(jnp.int32)
    found = _dense(queries, Keys(keys, values, key_positions[..., None], filled[..., None]), rule)
    return _positions_first(found.astype(query.dtype))


class Queries(NamedTuple):
    """The last axis but one is the sequence, in `Keys` too; a first axis of 1 stands for B."""

    vectors: jax.Array  # [B, K, G, T, C], scaled
    positions: jax.Array  # [1, T, 1]
    segments: jax.Array | None  # [B, T, 1]


class Keys(NamedTuple):
    """Keys, and the values that they stand for."""

    vectors: jax.Array  # [B, K, S, C]
    values: jax.Array  # [B, K, S, C]
    positions: jax.Array  # [1, S, 1]
    segments: jax.Array | None  # [B, S, 1]


class Rule(NamedTuple):
    """Which keys a query sees, and what becomes of its logits and weights."""

    causal: bool = False
    window: int | None = None
    stride: int | None = None
    soft_cap: float | None = None
    dropout: Dropout | None = None

    def visible(self, queries: Queries, keys: Keys) -> jax.Array | None:
        """Bool [B or 1, T, S]; None when all see all."""
        ahead = keys.positions.mT - queries.positions
        masks = []
        if self.causal:
            masks.append(ahead <= 0)
        if self.window is not None:
            masks.append(abs(ahead) < self.window)
        if self.stride is not None:
            masks.append((abs(ahead) < self.stride) | (ahead % self.stride == 0))
        if queries.segments is not None and keys.segments is not None:
            masks.append(queries.segments == keys.segments.mT)
        return functools.reduce(jnp.logical_and, masks) if masks else None

    def reaches(self, queries: Queries, keys: Keys) -> jax.Array:
        """Whether any query may see any key, by position alone."""
        nearest_behind = keys.positions.min() - queries.positions.max()
        nearest_ahead = keys.positions.max() - queries.positions.min()
        window = self.window or jnp.iinfo(jnp.int32).max
        return (nearest_behind < (1 if self.causal else window)) & (nearest_ahead > -window)


class Partial(NamedTuple):
    """Attention to some of the keys, not normalised yet, in float32.

    values [B, K, G, T, C] are weighted by exp(logit - top); total is the sum of the weights. Both
    top and total are [B, K, G, T].
    """

    values: jax.Array
    top: jax.Array
    total: jax.Array

    def plus(self, other: 'Partial') -> 'Partial':
        """Of the keys of both."""
        top = jnp.maximum(self.top, other.top)
        mine, theirs = jnp.exp(self.top - top), jnp.exp(other.top - top)
        values = self.values * mine[..., None] + other.values * theirs[..., None]
        return Partial(values, top, self.total * mine + other.total * theirs)

    def normalized(self) -> jax.Array:
        """[B, K, G, T, C]; zeros where no key was seen."""
        return self.values / jnp.where(self.total > 0, self.total, 1)[..., None]


def _partial(queries: Queries, keys: Keys, rule: Rule) -> Partial:
    einsum = functools.partial(
        jnp.einsum,
        precision=SUM_IN_FLOAT32.get(keys.vectors.dtype.name),
        preferred_element_type=jnp.float32,
    )
    # The heads of a group are rows of one matrix: with an axis of their own, half as fast on CPU.
    shape = queries.vectors.shape
    rows = queries.vectors.reshape(*shape[:2], -1, shape[-1])
    logits = einsum('bkrc,bksc->bkrs', rows, keys.vectors).reshape(*shape[:-1], -1)
    if rule.soft_cap is not None:
        logits = rule.soft_cap * jnp.tanh(logits / rule.soft_cap)
    visible = rule.visible(queries, keys)
    if visible is not None:
        visible = jnp.broadcast_to(visible[:, None, None], logits.shape)
        logits = jnp.where(visible, logits, -jnp.inf)
    # The top cancels out in the end. A finite one makes all weights zero where no key is visible.
    top = lax.stop_gradient(jnp.maximum(logits.max(-1), LOWEST))
    weights = jnp.exp(logits - top[..., None])
    total = weights.sum(-1)
    if rule.dropout is not None:
        weights = _dropped(weights, queries, keys, rule.dropout)
    weights = weights.astype(keys.values.dtype).reshape(*rows.shape[:-1], -1)
    return Partial(einsum('bkrs,bksc->bkrc', weights, keys.values).reshape(shape), top, total)


def _dropped(weights: jax.Array, queries: Queries, keys: Keys, dropout: Dropout) -> jax.Array:
    """Each block of queries and keys has noise of its own, the same when it is computed again."""
    rng = jax.random.fold_in(dropout.rng, queries.positions.max())
    rng = jax.random.fold_in(rng, keys.positions.max())
    kept = jax.random.bernoulli(rng, 1 - dropout.rate, weights.shape)
    return jnp.where(kept, weights / (1 - dropout.rate), 0)


def _dense(queries: Queries, keys: Keys, rule: Rule) -> jax.Array:
    return _partial(queries, keys, rule).normalized()


def _chunked(queries: Queries, keys: Keys, rule: Rule) -> jax.Array:
    """Block by block, with a running maximum and sum, and again in the backward pass: memory linear
    in T (Rabe & Staats 2021). Blocks out of reach are skipped."""
    if keys.segments is None and keys.positions.size % BLOCK:  # segment -1 will mark padding
        queries = queries._replace(segments=jnp.zeros_like(queries.positions))
        keys = keys._replace(segments=jnp.zeros_like(keys.positions))
    query_blocks, key_blocks = jax.tree.map(_in_blocks, (queries, keys))

    def of_queries(queries: Queries) -> jax.Array:
        def add(sum: Partial, keys: Keys) -> tuple[Partial, None]:
            def more() -> Partial:
                return sum.plus(_partial(queries, keys, rule))

            return lax.cond(rule.reaches(queries, keys), more, lambda: sum), None

        zeros = jnp.zeros(queries.vectors.shape, jnp.float32)
        nothing = Partial(zeros, jnp.full_like(zeros[..., 0], LOWEST), zeros[..., 0])
        return lax.scan(jax.checkpoint(add), nothing, key_blocks)[0].normalized()

    blocks = lax.map(jax.checkpoint(of_queries), query_blocks)
    return _from_blocks(blocks, queries.positions.size)


def _in_blocks(x: jax.Array) -> jax.Array:
    """[..., T, C] -> [N, ..., T / N, C], padded with -1."""
    length = x.shape[-2]
    size = min(BLOCK, length)
    padding = [(0, 0)] * (x.ndim - 2) + [(0, -length % size), (0, 0)]
    padded = jnp.pad(x, padding, constant_values=-1)
    return jnp.moveaxis(padded.reshape(*x.shape[:-2], -1, size, x.shape[-1]), -3, 0)


def _from_blocks(blocks: jax.Array, length: int) -> jax.Array:
    """[N, ..., T / N, C] -> [..., T, C] without padding."""
    x = jnp.moveaxis(blocks, 0, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])[..., :length, :]


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
        and rule.dropout is None
    )


def _fastest(query: jax.Array, key: jax.Array, rule: Rule) -> Implementation:
    if _fits_cudnn(query, key, rule):
        return 'cudnn'
    return 'dense' if max(query.shape[1], key.shape[1]) <= DENSE_LENGTH else 'chunked'


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
            ' even lengths, no soft cap and no dropout, got '
            f'{jax.default_backend()}, {query.dtype}, {query.shape[-1]}, {query.shape[1]}, '
            f'{rule.soft_cap}, {rule.dropout and rule.dropout.rate}; leave it out'
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
