"""Layers stacked along a leading axis, as `nn.scan` makes them, are tensors of their own.

Optimizers with statistics per tensor (a norm, a row mean) would take a stack of layers for one.
"""

from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec


def num_stacked(name: str, axes: PartitionSpec) -> int:
    """How many leading axes of a parameter are layers. Raises: ValueError if they do not lead."""
    count = tuple(axes).count('layers')
    if tuple(axes)[:count] != ('layers',) * count:
        raise ValueError(f"{name}: the axis 'layers' must come first, got {tuple(axes)}")
    return count


def per_layer(
    transform: optax.GradientTransformation, stacked: Any
) -> optax.GradientTransformation:
    """`transform` applied to each tensor by itself, and to each layer of a stack by itself.

    stacked: a tree like the parameters, each leaf's number of stacked axes. The state is such a
    tree too, with the transform's own state of each leaf.
    """

    def init(params: Any) -> Any:
        return jax.tree.map(lambda depth, p: _over(depth, transform.init)(p), stacked, params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def both(depth: int, *leaf: Any) -> Any:
            return _over(depth, transform.update)(*leaf)

        pairs = jax.tree.map(both, stacked, updates, state, params)
        return (
            jax.tree.map(lambda _, pair: pair[0], stacked, pairs),
            jax.tree.map(lambda _, pair: pair[1], stacked, pairs),
        )

    return optax.GradientTransformation(init, update)


def _over(depth: int, function: Any) -> Any:
    """`function` mapped over that many leading axes."""
    return _over(depth - 1, jax.vmap(function)) if depth else function
