"""Initial values of parameters. Kernels are `[fan-in axes..., fan-out axis]`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.nn import initializers

Initializer = Callable[..., jax.Array]

zeros = initializers.zeros
ones = initializers.ones


def normal(stddev: float) -> Initializer:
    """Gaussian with the given standard deviation."""
    return initializers.normal(stddev)


def lecun() -> Initializer:
    """Truncated Gaussian of variance 1 / fan-in (LeCun et al. 1998, section 4.6)."""
    return initializers.lecun_normal()


def he() -> Initializer:
    """Truncated Gaussian of variance 2 / fan-in, for ReLU (He et al. 2015, equation 10)."""
    return initializers.he_normal()


def xavier() -> Initializer:
    """Uniform of variance 2 / (fan-in + fan-out) (Glorot & Bengio 2010, equation 16)."""
    return initializers.xavier_uniform()


def orthogonal() -> Initializer:
    """Orthogonal rows or columns, whichever are fewer (Saxe et al. 2014)."""
    return initializers.orthogonal()


def before(activation: str) -> Initializer:
    """For the kernel before that activation: `he` for ReLU, else `lecun`."""
    return he() if activation == 'relu' else lecun()


def of_each(init: Initializer) -> Initializer:
    """Every matrix of a stack [E, ...] drawn by itself: the first axis is no fan-in."""

    def stack(rng: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        draw = partial(init, shape=shape[1:], dtype=dtype)
        return jax.vmap(draw)(jax.random.split(rng, shape[0]))

    return stack
