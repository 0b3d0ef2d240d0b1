"""Dynamic loss scaling, for gradients that pass through float16 (Micikevicius et al. 2018, 3.2).

The loss is multiplied by a scale before its gradient is taken, and the gradient divided by it. A
gradient that overflows costs its step, and halves the scale; enough steps without one double it.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

FIRST = 2.0**15
LOWEST = 2.0**-14
"""A scale below this says that it is not the scale that is wrong."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossScale:
    """scale: float32 []; good: int32 [], steps since it changed."""

    scale: Any
    good: Any


def first() -> LossScale:
    """At the start of a run."""
    return LossScale(jnp.asarray(FIRST, jnp.float32), jnp.zeros((), jnp.int32))


def after_step(before: LossScale, finite: jax.Array, growth_steps: int) -> LossScale:
    """The scale for the next step; `finite` [] tells whether the gradients of this one were."""
    good = jnp.where(finite, before.good + 1, 0)
    grows = good == growth_steps
    factor = jnp.where(finite, jnp.where(grows, 2.0, 1.0), 0.5)
    return LossScale(before.scale * factor, jnp.where(grows, 0, good))
