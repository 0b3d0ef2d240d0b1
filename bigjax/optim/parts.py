"""What every entry of the optimizer table is built from."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from optax import GradientTransformation as Transform

from bigjax import trees
from bigjax.optim.schedules import Schedule
from bigjax.optim.stacked import num_stacked, per_layer


@dataclass(frozen=True)
class Parts:
    """The pieces around a method's own. Trees are like the parameters, less those that are frozen.

    schedule, peak: the learning rate at a step, and its largest value.
    decay: adds weight_decay times the parameter, for the kinds that decay reaches.
    shapes, axes: abstract parameters, and PartitionSpecs of the logical names of their axes.
    base_shapes: those of the model that the parametrization measures this one by; or `shapes`.
    """

    schedule: Schedule
    peak: float
    decay: Transform
    shapes: Any
    axes: Any
    base_shapes: Any

    @property
    def rate(self) -> Transform:
        """Times minus the learning rate."""
        return optax.scale_by_learning_rate(self.schedule)

    def per_layer(self, transform: Transform) -> Transform:
        """For a transform with statistics per tensor: each layer of a stack is a tensor."""
        return per_layer(transform, trees.map_with_name(num_stacked, self.axes))


def add_decayed(coefficients: Any) -> Transform:
    """Adds to each update its parameter times a coefficient of its own."""

    def add(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda c, u, p: u + c * p if c else u, coefficients, updates, params)

    return optax.stateless(add)


def scale_each(factors: Any) -> Transform:
    """Multiplies each update by a factor of its own, or each layer of a stack by one (an array)."""

    def scale(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda f, u: u if np.all(f == 1.0) else f * u, factors, updates)

    return optax.stateless(scale)
