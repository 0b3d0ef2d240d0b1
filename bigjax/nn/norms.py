"""Normalisation, with statistics in float32 whatever the compute dtype.

Every norm is called as `norm(x, train)`, so that kinds can be exchanged; only batch norm reads
`train`. Scales start at one unless `scale_init` says otherwise, shifts at zero.

Shapes: B batch, C channels or width (the last axis), G groups.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from bigjax.errors import ConfigError
from bigjax.nn import initializers
from bigjax.nn.initializers import Initializer
from bigjax.nn.params import param

Norm = Literal['batch', 'layer', 'rms', 'group']
"""For the fields of configs."""


class LayerNorm(nn.Module):
    """Zero mean and unit variance over the last axis (Ba et al. 2016, equation 4)."""

    epsilon: float = 1e-6
    use_bias: bool = True
    scale_init: Initializer = initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = _standardised(x.astype(jnp.float32), -1, self.epsilon) * _scale(self, x)
        return (y + _bias(self, y) if self.use_bias else y).astype(self.dtype)


class RMSNorm(nn.Module):
    """Unit root mean square over the last axis, no shift (Zhang & Sennrich 2019, equation 4)."""

    epsilon: float = 1e-6
    scale_init: Initializer = initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x.astype(jnp.float32)
        y = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        return (y * _scale(self, y)).astype(self.dtype)


class GroupNorm(nn.Module):
    """Layer norm over all positions and C / G channels at a time: [B, ..., C] (Wu & He 2018)."""

    groups: int = 32
    epsilon: float = 1e-5
    scale_init: Initializer = initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        batch, channels = x.shape[0], x.shape[-1]
        if channels % self.groups:
            raise ConfigError(
                f'group norm: expected channels divisible by {self.groups} groups, got {channels}'
            )
        grouped = x.astype(jnp.float32).reshape(batch, -1, self.groups, channels // self.groups)
        y = _standardised(grouped, (1, 3), self.epsilon).reshape(x.shape)
        return (y * _scale(self, y) + _bias(self, y)).astype(self.dtype)


class BatchNorm(nn.Module):
    """Zero mean and unit variance of each channel over the batch (Ioffe & Szegedy 2015).

    In training the statistics are those of the batch: the global one, since under jit a mean over
    a sharded axis is the mean over all devices. Their running averages, kept in 'batch_stats',
    stand in for them in evaluation. The batch is normalised by its biased variance; the running
    variance averages the unbiased one (algorithm 2, step 10).
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Initializer = initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        channels = x.shape[-1:]
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)
        x = x.astype(jnp.float32)
        if train:
            over = tuple(range(x.ndim - 1))
            mean, variance = x.mean(over), x.var(over)
            count = x.size // x.shape[-1]
            unbiased = variance * (count / max(count - 1, 1))
            for running, new in ((running_mean, mean), (running_var, unbiased)):
                running.value = self.momentum * running.value + (1 - self.momentum) * new
        else:
            mean, variance = running_mean.value, running_var.value
        mean, variance = (lax.broadcast_to_rank(s, x.ndim) for s in (mean, variance))
        factor = lax.rsqrt(variance + self.epsilon) * _scale(self, x)  # a channel, not an element
        return ((x - mean) * factor + _bias(self, x)).astype(self.dtype)


NORMS: dict[str, type[nn.Module]] = {
    'batch': BatchNorm,
    'layer': LayerNorm,
    'rms': RMSNorm,
    'group': GroupNorm,
}


def make_norm(kind: Norm, **options: Any) -> nn.Module:
    """The norm of that kind; options are the fields of its class."""
    return NORMS[kind](**options)


def _standardised(x: jax.Array, axes: int | tuple[int, ...], epsilon: float) -> jax.Array:
    """Zero mean and unit variance over the axes."""
    centred = x - x.mean(axes, keepdims=True)
    return centred * lax.rsqrt(jnp.square(centred).mean(axes, keepdims=True) + epsilon)


def _scale(module: Any, x: jax.Array) -> jax.Array:
    scale = param(module, 'scale', module.scale_init, x.shape[-1:], ('norm',))
    return lax.broadcast_to_rank(scale, x.ndim)


def _bias(module: Any, x: jax.Array) -> jax.Array:
    bias = param(module, 'bias', initializers.zeros, x.shape[-1:], ('norm',))
    return lax.broadcast_to_rank(bias, x.ndim)
