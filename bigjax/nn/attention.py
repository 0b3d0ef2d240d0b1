"""The attention layer: projections, rotation, and a cache for writing on.

Shapes: B batch, T sequence, S places of the cache, H heads, K key heads, C head size, D width.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from bigjax.nn import initializers
from bigjax.nn.attend import Dropout, Implementation, attend, attend_cached
from bigjax.nn.initializers import Initializer
from bigjax.nn.linear import add_bias, matmul
from bigjax.nn.multipliers import times
from bigjax.nn.norms import Norm, make_norm
from bigjax.nn.params import param
from bigjax.nn.partials import Rule
from bigjax.nn.positions import Frequencies, rotate
from bigjax.sharding.rules import constrain, parts

PROJECTION = 'projection'
"""By this name policies of rematerialisation know what a projection gives."""


class Projection(nn.Module):
    """x W + b over the last axes of x, as many as `contracted`: [..., D] -> [..., H, C], or back.

    axes: the logical names of the kernel's; the bias takes those of what comes out.
    """

    features: tuple[int, ...]
    axes: tuple[str, ...]
    contracted: int = 1
    use_bias: bool = True
    kernel_init: Initializer = initializers.lecun()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        rest, fan_in = x.shape[: -self.contracted], x.shape[-self.contracted :]
        last = math.prod(fan_in)
        shape = fan_in + self.features
        kernel = param(self, 'kernel', self.kernel_init, shape, self.axes, self.dtype)
        x = x.astype(self.dtype).reshape(*rest, last)
        y = matmul(x, kernel.reshape(last, *self.features))
        if self.use_bias:
            bias_axes = self.axes[self.contracted :]
            bias = param(self, 'bias', initializers.zeros, self.features, bias_axes)
            y = add_bias(y, bias)
        return checkpoint_name(y, PROJECTION)


class Cache(NamedTuple):
    """Keys and values of the positions seen so far; position p lies at place p mod S.

    With S no less than a layer's window, what a new position writes over was out of sight.
    """

    keys: jax.Array  # [B, K, S, C]
    values: jax.Array  # [B, K, S, C]
    positions: jax.Array  # int32 [B, S]; -1 where empty

    @classmethod
    def empty(cls, batch: int, places: int, heads: int, size: int, dtype: Any) -> 'Cache':
        """Of one layer; `heads` are key heads."""
        vectors = jnp.zeros((batch, heads, places, size), dtype)
        vectors = constrain(vectors, ('batch', 'kv_heads', None, 'head_dim'))
        return cls(vectors, vectors, jnp.full((batch, places), -1, jnp.int32))

    def write(
        self, key: jax.Array, value: jax.Array, positions: jax.Array, real: jax.Array
    ) -> 'Cache':
        """With key and value [B, T, K, C] of `positions` [B, T], where `real` [B, T]."""
        places = self.positions.shape[1]
        newest = jnp.where(real, positions, -1).max(1, keepdims=True)
        stays = real & (positions > newest - places)  # of positions with one place the newest
        at = jnp.where(stays, positions % places, places)  # one past the end is dropped
        rows = jnp.arange(at.shape[0])[:, None]
        return Cache(
            self.keys.at[rows, :, at].set(key.astype(self.keys.dtype), mode='drop'),
            self.values.at[rows, :, at].set(value.astype(self.values.dtype), mode='drop'),
            self.positions.at[rows, at].set(positions, mode='drop'),
        )


class Attention(nn.Module):
    """Self-attention with its projections: [B, T, D] -> [B, T, D].

    frequencies: rotate queries and keys by them (`positions.rotate`); None for not.
    norm: of queries and keys, over the head size (Henry et al. 2020); None for not.
    out_init: of the projection back to the width.
    multiplier: of the logits.
    The rest is as in `attend`.

    Given a collection 'cache' with a `Cache` under 'seen', the layer writes what it reads there. A
    single position then attends to all that is there; several at once fill an empty cache.
    """

    heads: int
    key_heads: int
    head_size: int
    causal: bool = False
    window: int | None = None
    stride: int | None = None
    frequencies: Frequencies | None = None
    norm: Norm | None = None
    norm_epsilon: float = 1e-6
    soft_cap: float | None = None
    dropout: float = 0.0
    use_bias: bool = True
    kernel_init: Initializer = initializers.lecun()
    out_init: Initializer = initializers.lecun()
    multiplier: float = 1.0
    implementation: Implementation | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """segments, positions: int [B, T]; one segment, and 0 to T - 1, if not given."""
        query = self._project('query', self.heads, 'heads', x)
        key = self._project('key', self.key_heads, 'kv_heads', x)
        value = self._project('value', self.key_heads, 'kv_heads', x)
        if self.norm is not None:
            query, key = self._norm('query_norm', query), self._norm('key_norm', key)
        query = times(query, self.multiplier)
        if positions is None:
            positions = jnp.arange(x.shape[1])[None]
        if self.frequencies is not None:
            query, key = (rotate(v, positions, self.frequencies) for v in (query, key))
        positions = jnp.broadcast_to(positions, x.shape[:2])
        seen: Cache | None = None
        if self.has_variable('cache', 'seen'):
            real = jnp.ones_like(positions, bool) if segments is None else segments != 0
            seen = self.get_variable('cache', 'seen').write(key, value, positions, real)
            self.put_variable('cache', 'seen', seen)
        if seen is not None and x.shape[1] == 1:
            rule = Rule(self.causal, self.window, self.stride, self.soft_cap)
            mixed = attend_cached(query, seen.keys, seen.values, positions, seen.positions, rule)
        else:
            mixed = self._attend(query, key, value, segments, train)
        mixed = constrain(mixed, ('batch', 'sequence', 'heads', 'head_dim'))
        return Projection(
            x.shape[-1:],
            ('heads', 'head_dim', 'embed'),
            contracted=2,
            use_bias=self.use_bias,
            kernel_init=self.out_init,
            dtype=self.dtype,
            name='out',
        )(mixed)

    def _attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        segments: jax.Array | None,
        train: bool,
    ) -> jax.Array:
        # Where key heads are fewer than the parts of the heads, each part has those that it needs.
        copies = math.lcm(self.key_heads, parts('heads', self.heads)) // self.key_heads
        if copies > 1:
            axes = ('batch', 'sequence', 'kv_heads', 'head_dim')
            key, value = (constrain(x.repeat(copies, axis=2), axes) for x in (key, value))
        drops = train and self.dropout > 0
        return attend(
            query,
            key,
            value,
            causal=self.causal,
            window=self.window,
            stride=self.stride,
            segments=segments,
            logit_soft_cap=self.soft_cap,
            dropout=Dropout(self.dropout, self.make_rng('dropout')) if drops else None,
            implementation=self.implementation,
        )

    def _project(self, name: str, heads: int, axis: str, x: jax.Array) -> jax.Array:
        project = Projection(
            (heads, self.head_size),
            ('embed', axis, 'head_dim'),
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name=name,
        )
        return constrain(project(x), ('batch', 'sequence', axis, 'head_dim'))

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        assert self.norm is not None
        norm = make_norm(self.norm, epsilon=self.norm_epsilon, dtype=self.dtype, name=name)
        return norm(x)
