"""Initial values of parameters. Kernels are `[fan-in axes..., fan-out axis]`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

Initializer = Callable[..., jax.Array]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Known:
    """An initializer that tells the standard deviation of what it draws, given the shape."""

    draw: Initializer
    stddev: Callable[[Shape], float]

    def __call__(self, rng: jax.Array, shape: Shape, dtype: Any = jnp.float32) -> jax.Array:
        return self.draw(rng, shape, dtype)


def stddev(init: Initializer, shape: Shape) -> float | None:
    """Of what it draws; None of initializers that do not tell."""
    return init.stddev(shape) if isinstance(init, Known) else None


zeros: Initializer = Known(initializers.zeros, lambda _: 0.0)
ones: Initializer = Known(initializers.ones, lambda _: 0.0)


def normal(stddev: float) -> Initializer:
    """Gaussian with the given standard deviation."""
    return Known(initializers.normal(stddev), lambda _: stddev)


def lecun() -> Initializer:
    """Truncated Gaussian of variance 1 / fan-in (LeCun et al. 1998, section 4.6)."""
    return Known(initializers.lecun_normal(), lambda shape: _fan_in(shape) ** -0.5)


def he() -> Initializer:
    """Truncated Gaussian of variance 2 / fan-in, for ReLU (He et al. 2015, equation 10)."""
    return Known(initializers.he_normal(), lambda shape: (2 / _fan_in(shape)) ** 0.5)


def xavier() -> Initializer:
    """Uniform of variance 2 / (fan-in + fan-out) (Glorot & Bengio 2010, equation 16)."""

    def stddev(shape: Shape) -> float:
        return (2 / (_fan_in(shape) * (1 + shape[-1] / shape[-2]))) ** 0.5

    return Known(initializers.xavier_uniform(), stddev)


def _fan_in(shape: Shape) -> int:
    return math.prod(shape[:-1])


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

    return Known(stack, lambda shape: init.stddev(shape[1:])) if isinstance(init, Known) else stack
