"""From logical axis names to mesh axes: one table for parameters, one for activations."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigjax import trees
from bigjax.errors import ConfigError, nearest
from bigjax.sharding.mesh import BATCH_AXES

Rules = Mapping[str, tuple[str, ...]]

PARAMETER_RULES: Rules = {
    'embed': ('fsdp',),  # model width as fan-in: gathered when used
    'mlp': ('tensor',),  # width as fan-out: column-parallel (Megatron-LM, Shoeybi et al. 2019, 3)
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'vocab': ('tensor',),
    'experts': ('expert',),
    'router': (),  # its outputs: few, and whole wherever tokens are
    'input': (),
    'output': (),
    'head_dim': (),
    'position': (),
    'token_type': (),
    'layers': (),
    'kernel_height': (),
    'kernel_width': (),
    'norm': (),
    'rank': (),
}

IN_USE_RULES: Rules = {
    name: tuple(axis for axis in axes if axis != 'fsdp') for name, axes in PARAMETER_RULES.items()
}
"""Parameters as layers compute with them: gathered over fsdp."""

ACTIVATION_RULES: Rules = {
    'batch': BATCH_AXES,
    'experts': ('expert',),
    'rows': tuple(axis for axis in BATCH_AXES if axis != 'expert'),  # where experts are split
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
        axes = () if name is None else tuple(axis for axis in rules[name] if sizes.get(axis, 1) > 1)
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


def in_use(parameter: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    """A parameter as a layer computes with it: whole over fsdp, still split over tensor.

    The gather is spelled out because the compiler's own choice is not to be trusted: with weights
    split over fsdp and tensor at once, XLA (jax 0.10.2 to 0.12.0, either partitioner) computes a
    wrong gradient for a three-layer perceptron on a 2x2x2 mesh; `tests/sharding/test_rules.py` has
    it. Outside `jax.set_mesh`, or on one device, nothing is done.
    """
    if _mesh_size() == 1:
        return parameter
    return _gathered(parameter, tuple(names) or (None,) * parameter.ndim)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(parameter: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    return _placed(parameter, names, IN_USE_RULES)


def _gathered_forward(
    parameter: jax.Array, names: tuple[str | None, ...]
) -> tuple[jax.Array, None]:
    return _gathered(parameter, names), None


def _gathered_backward(
    names: tuple[str | None, ...], _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    # asked for in the parameter's own layout, so that it can be reduce-scattered
    return (_placed(gradient, names, PARAMETER_RULES),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def constrain(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    """Tells the compiler how an activation lies on the mesh; without `jax.set_mesh`, nothing.

    Raises: ConfigError on a name that has no rule.
    """
    if _mesh_size() == 1:
        return x
    return _placed(x, names, ACTIVATION_RULES)


def _mesh_size() -> int:
    return math.prod(jax.sharding.get_abstract_mesh().shape.values())


def _placed(x: jax.Array, names: tuple[str | None, ...], rules: Rules) -> jax.Array:
    found, _ = spec(names, x.shape, jax.sharding.get_abstract_mesh().shape, rules)
    return jax.lax.with_sharding_constraint(x, found)
