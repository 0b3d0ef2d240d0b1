"""Activation functions by name. Gated kinds take a second projection: see `linear.Hidden`."""

from collections.abc import Callable
from typing import Literal, get_args

import jax

Pointwise = Literal['sigmoid', 'tanh', 'relu', 'gelu', 'gelu_tanh', 'silu']
Gated = Literal['swiglu', 'geglu']
Activation = Literal[Pointwise, Gated]
"""For the fields of configs."""


def _gelu(x: jax.Array) -> jax.Array:
    """x times the Gaussian distribution function, exact (Hendrycks & Gimpel 2016, equation 1)."""
    return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU through tanh, as GPT-2 and BERT's first release have it (ibid., section 2)."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'sigmoid': jax.nn.sigmoid,
    'tanh': jax.numpy.tanh,
    'relu': jax.nn.relu,
    'gelu': _gelu,
    'gelu_tanh': _gelu_tanh,
    'silu': jax.nn.silu,
    # What a gated kind applies to its gate (Shazeer 2020, section 2).
    'swiglu': jax.nn.silu,
    'geglu': _gelu,
}


def is_gated(activation: Activation) -> bool:
    """Whether the activation takes a second projection."""
    return activation in get_args(Gated)
