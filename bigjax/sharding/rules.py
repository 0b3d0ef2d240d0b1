"""From logical axis names to mesh axes: one table for parameters, one for activations."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigjax import trees
from bigjax.errors import ConfigError, nearest

Rules = Mapping[str, tuple[str, ...]]

PARAMETER_RULES: Rules = {
    'embed': ('fsdp',),  # model width as fan-in: gathered when used
    'mlp': ('tensor',),  # width as fan-out: column-parallel (Megatron-LM, Shoeybi et al. 2019, 3)
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'vocab': ('tensor',),
    'input': (),
    'output': (),
    'head_dim': (),
    'position': (),
    'layers': (),
    'kernel_height': (),
    'kernel_width': (),
    'norm': (),
}

ACTIVATION_RULES: Rules = {
    'batch': ('data', 'fsdp'),
    'sequence': (),
    'embed': (),
    'mlp': ('tensor',),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'vocab': ('tensor',),
    'head_dim': (),
}


def spec(
    names: tuple[str | None, ...], shape: tuple[int, ...], sizes: Mapping[str, int], rules: Rules
) -> tuple[PartitionSpec, list[str]]:
    """The mesh axes of one array, and why any of them could not be had.

    Raises: ConfigError on a name that is in no rule, or two dimensions on one mesh axis.
    """
    entries: list[tuple[str, ...] | None] = []
    refusals: list[str] = []
    for name, size in zip(names, shape, strict=True):
        if name is not None and name not in rules:
            raise ConfigError(f'no sharding rule for axis {name!r}: {nearest(name, rules)}')
        axes = tuple(axis for axis in rules[name] if sizes[axis] > 1) if name is not None else ()
        parts = math.prod(sizes[axis] for axis in axes)
        if size % parts:
            refusals.append(f'{name}={size} is not divisible by {"*".join(axes)}={parts}')
            axes = ()
        entries.append(axes or None)
    used = [axis for axes in entries if axes for axis in axes]
    if len(used) != len(set(used)):
        raise ConfigError(f'sharding rules put two of the axes {names} on one mesh axis')
    return PartitionSpec(*entries), refusals


def parameter_shardings(axes: Any, shapes: Any, mesh: Mesh) -> tuple[Any, list[str]]:
    """A NamedSharding for each leaf, and a line for each leaf that stays whole though a rule split
    it.

    axes: a tree of PartitionSpecs of logical names; an empty one is replicated.
    shapes: the same tree with abstract arrays.
    """
    notes: list[str] = []

    def sharding(name: str, shape: jax.ShapeDtypeStruct, logical: PartitionSpec) -> NamedSharding:
        logical_names = tuple(logical) or (None,) * len(shape.shape)
        found, refusals = spec(logical_names, shape.shape, dict(mesh.shape), PARAMETER_RULES)
        notes.extend(f'{name} stays whole: {refusal}' for refusal in refusals)
        return NamedSharding(mesh, found)

    return trees.map_with_name(sharding, shapes, axes), notes


def constrain(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    """Tells the compiler how an activation lies on the mesh; outside `jax.set_mesh` it does
    nothing."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    if math.prod(sizes.values()) == 1:
        return x
    found, _ = spec(names, x.shape, sizes, ACTIVATION_RULES)
    return jax.lax.with_sharding_constraint(x, found)
