"""Noise in training, from the stream 'dropout'; the identity in evaluation and at rate 0."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dropout(nn.Module):
    """Zeroes each element with probability `rate`, and divides the rest by 1 - rate, so that the
    expectation stays (Srivastava et al. 2014, section 10, scaled in training rather than after)."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not train or self.rate == 0:
            return x
        return _drop(self.make_rng('dropout'), x, x.shape, self.rate)


class StochasticDepth(nn.Module):
    """Zeroes the whole of a sample's residual branch with probability `rate`: [B, ...] -> [B, ...]
    (Huang et al. 2016, section 3; survivors are divided by 1 - rate rather than scaled after)."""

    rate: float

    @nn.compact
    def __call__(self, branch: jax.Array, train: bool) -> jax.Array:
        if not train or self.rate == 0:
            return branch
        return drop_samples(self.make_rng('dropout'), branch, self.rate)


def drop_samples(rng: jax.Array, branch: jax.Array, rate: float | jax.Array) -> jax.Array:
    """What StochasticDepth does, at a rate that may be an array, as in a scan over layers."""
    return _drop(rng, branch, (branch.shape[0],) + (1,) * (branch.ndim - 1), rate)


def _drop(
    rng: jax.Array, x: jax.Array, shape: tuple[int, ...], rate: float | jax.Array
) -> jax.Array:
    kept = jax.random.bernoulli(rng, 1 - rate, shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)
