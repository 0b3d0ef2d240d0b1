"""What of an input a model's score hangs on: gradients, plain, averaged and integrated.

A score is a function of one input [...] (no batch axis) to a scalar, such as the logit of a class;
a map has the shape of the input.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

Score = Callable[[jax.Array], jax.Array]


def gradient(score: Score, x: jax.Array) -> jax.Array:
    """d score / d x (Simonyan et al. 2014, section 3)."""
    return jax.grad(score)(x)


@partial(jax.jit, static_argnums=0, static_argnames='samples')
def smooth_gradient(
    score: Score, x: jax.Array, key: jax.Array, *, noise: float = 0.15, samples: int = 50
) -> jax.Array:
    """The mean gradient at `samples` points around x (SmoothGrad, Smilkov et al. 2017, section 3).

    noise: the standard deviation as a part of the range of x.
    """
    spread = noise * (x.max() - x.min())

    def add(total: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        return total + jax.grad(score)(x + spread * jax.random.normal(key, x.shape, x.dtype)), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(x), jax.random.split(key, samples))
    return total / samples


@partial(jax.jit, static_argnums=0, static_argnames='points')
def integrated_gradients(
    score: Score, x: jax.Array, baseline: jax.Array, *, points: int = 64
) -> jax.Array:
    """(x - baseline) times the mean gradient between them (Sundararajan et al. 2017, equation 1).

    By Gauss-Legendre quadrature of `points`, exact where the score is a polynomial of up to twice
    that degree along the way. The map sums to score(x) - score(baseline): `completeness_gap` tells
    by how much it does not.
    """
    nodes, weights = np.polynomial.legendre.leggauss(points)
    places = jnp.asarray((nodes + 1) / 2, x.dtype), jnp.asarray(weights / 2, x.dtype)

    def add(total: jax.Array, place: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        at, weight = place
        return total + weight * jax.grad(score)(baseline + at * (x - baseline)), None

    mean, _ = jax.lax.scan(add, jnp.zeros_like(x), places)
    return (x - baseline) * mean


def completeness_gap(
    score: Score, x: jax.Array, baseline: jax.Array, attributions: jax.Array
) -> float:
    """Sum of the attributions less score(x) - score(baseline): 0 for an exact integral."""
    return float(attributions.sum() - (score(x) - score(baseline)))
