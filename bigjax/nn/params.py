"""Parameters that carry the names of their axes.

Layers own their parameters: `param(self, 'kernel', init, (D, F), ('embed', 'mlp'))`. The names are
logical; `sharding.rules` maps them to mesh axes, and parametrizations read them. The box is
metadata of an abstract init only: inside a module, and in every state, parameters are plain arrays.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.core import meta
from jax.sharding import PartitionSpec

from bigjax.nn.initializers import Initializer, stddev
from bigjax.sharding.rules import in_use


class Named(struct.PyTreeNode, meta.AxisMetadata):
    """A parameter, the logical name of each of its axes, and its initial standard deviation."""

    value: Any
    names: tuple[str | None, ...] = struct.field(pytree_node=False)
    stddev: float | None = struct.field(pytree_node=False, default=None)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> 'Named':
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> 'Named':
        """Called by nn.scan and nn.vmap, which stack parameters along a new axis."""
        names = list(self.names)
        names.insert(index, params.get(nn.PARTITION_NAME, 'layers'))
        return self.replace(names=tuple(names))

    def remove_axis(self, index: int, params: dict[Any, Any]) -> 'Named':
        names = list(self.names)
        names.pop(index)
        return self.replace(names=tuple(names))


def param(
    module: nn.Module,
    name: str,
    init: Initializer,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    dtype: Any = jnp.float32,
) -> jax.Array:
    """A float32 parameter of `module` whose axes are named `axes`, one name a dimension.

    Returns its value in `dtype`, gathered over fsdp: the form in which a layer computes with it.
    """
    if len(axes) != len(shape):
        raise ValueError(f'{module.name}/{name}: {len(shape)} dimensions, {len(axes)} axis names')

    def make(rng: jax.Array) -> Named:
        return Named(init(rng, shape, jnp.float32), axes, stddev(init, shape))

    value: Any = module.param(name, make)
    return in_use(value.astype(dtype), axes)


def unbox(variables: Any) -> Any:
    """The same tree with plain arrays for leaves."""
    return jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, Named) else leaf, variables, is_leaf=_is_named
    )


def logical_axes(variables: Any) -> Any:
    """The same tree with a PartitionSpec of logical names for leaves; no names for unnamed ones."""
    return jax.tree.map(
        lambda leaf: PartitionSpec(*leaf.names) if _is_named(leaf) else PartitionSpec(),
        variables,
        is_leaf=_is_named,
    )


def stddevs(variables: Any) -> Any:
    """The same tree with the initial standard deviation for leaves; NaN of those that tell none."""

    def of(leaf: Any) -> float:
        return leaf.stddev if _is_named(leaf) and leaf.stddev is not None else math.nan

    return jax.tree.map(of, variables, is_leaf=_is_named)


def _is_named(leaf: Any) -> bool:
    return isinstance(leaf, Named)
