"""Sums over keys, of which attention is made: softmax(Q K') V of some keys plus that of others.

Shapes: B batch, T queries, S keys, K key heads, G query heads for each, C head size, N blocks.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bigjax.nn.linear import sum_in_float32

BLOCK = 512
LOWEST = -1e30


class Queries(NamedTuple):
    """The last axis but one is the sequence, in `Keys` too; a first axis of 1 stands for B."""

    vectors: jax.Array  # [B, K, G, T, C], scaled
    positions: jax.Array  # [1, T, 1]
    segments: jax.Array | None = None  # [B, T, 1]
    noise: jax.Array | None = None  # int32 [B, K, G, T, 2], a random key each, for dropout


class Keys(NamedTuple):
    """Keys, and the values that they stand for."""

    vectors: jax.Array  # [B, K, S, C]
    values: jax.Array  # [B, K, S, C]
    positions: jax.Array  # [1, S, 1]
    segments: jax.Array | None = None  # [B, S, 1]


class Rule(NamedTuple):
    """Which keys a query sees, and what becomes of its logits and weights.

    dropout: the rate.
    """

    causal: bool = False
    window: int | None = None
    stride: int | None = None
    soft_cap: float | None = None
    dropout: float = 0.0

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


Summed = Callable[[Queries, Keys, Rule], Partial]


def at_once(queries: Queries, keys: Keys, rule: Rule) -> Partial:
    """With all logits in memory."""
    einsum = functools.partial(
        jnp.einsum,
        precision=sum_in_float32(keys.vectors.dtype),
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
    if queries.noise is not None:
        kept = _noise(queries.noise, keys.positions.ravel()) >= rule.dropout
        weights = jnp.where(kept, weights / (1 - rule.dropout), 0)
    weights = weights.astype(keys.values.dtype).reshape(*rows.shape[:-1], -1)
    return Partial(einsum('bkrs,bksc->bkrc', weights, keys.values).reshape(shape), top, total)


def by_blocks(queries: Queries, keys: Keys, rule: Rule) -> Partial:
    """Block by block, and again in the backward pass: memory linear in T (Rabe & Staats 2021)."""
    if keys.segments is None and keys.positions.size % BLOCK:  # segment -1 will mark padding
        queries = queries._replace(segments=jnp.zeros_like(queries.positions))
        keys = keys._replace(segments=jnp.zeros_like(keys.positions))
    query_blocks, key_blocks = jax.tree.map(_in_blocks, (queries, keys))

    def of_queries(queries: Queries) -> Partial:
        def add(sum: Partial, keys: Keys) -> tuple[Partial, None]:
            return add_reached(sum, queries, keys, rule, at_once), None

        return lax.scan(jax.checkpoint(add), nothing(queries), key_blocks)[0]

    blocks = lax.map(jax.checkpoint(of_queries), query_blocks)
    return Partial(*(_from_blocks(x, queries.positions.size) for x in blocks))


def nothing(queries: Queries) -> Partial:
    """Of no keys."""
    zeros = jnp.zeros(queries.vectors.shape, jnp.float32)
    return Partial(zeros, jnp.full_like(zeros[..., 0], LOWEST), zeros[..., 0])


def add_reached(sum: Partial, queries: Queries, keys: Keys, rule: Rule, summed: Summed) -> Partial:
    """`sum` and what `summed` says of the keys, without a look at them if they are out of reach."""
    reaches = rule.reaches(queries, keys)
    return lax.cond(reaches, lambda: sum.plus(summed(queries, keys, rule)), lambda: sum)


def _noise(rows: jax.Array, positions: jax.Array) -> jax.Array:
    """Uniform in [0, 1) for each query's key of `rows` [..., T, 2] and position [S]: [..., T, S].

    It depends on nothing else, so it is the same in blocks of any size, and on any mesh.
    """
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    for _ in rows.shape[:-1]:
        fold = jax.vmap(fold, (0, None))
    keys = jax.random.wrap_key_data(lax.bitcast_convert_type(rows, jnp.uint32))
    bits = jax.random.key_data(fold(keys, positions))[..., 0]
    return (bits >> 8).astype(jnp.float32) * 2.0**-24


def _in_blocks(x: jax.Array) -> jax.Array:
    """[..., T, C] -> [N, ..., T / N, C], padded with -1."""
    length = x.shape[-2]
    size = min(BLOCK, length)
    padding = [(0, 0)] * (x.ndim - 2) + [(0, -length % size), (0, 0)]
    padded = jnp.pad(x, padding, constant_values=-1)
    return jnp.moveaxis(padded.reshape(*x.shape[:-2], -1, size, x.shape[-1]), -3, 0)


def _from_blocks(blocks: jax.Array, length: int) -> jax.Array:
    """[N, B, K, G, T / N, ...] -> [B, K, G, T, ...] without padding."""
    x = jnp.moveaxis(blocks, 0, 3)
    return x.reshape(*x.shape[:3], -1, *x.shape[5:])[:, :, :, :length]
