"""From logical axis names to mesh axes: one table for parameters, one for activations."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigjax import trees
from bigjax.errors import ConfigError, nearest
from bigjax.sharding.mesh import BATCH_AXES, check_divides

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

UNDIVIDED = {'heads': 'heads', 'mlp': 'hidden units', 'experts': 'experts'}
"""Axes that must divide over the mesh, and what they count: whole they would cost all it saves."""

IN_USE_RULES: Rules = {
    name: tuple(axis for axis in axes if axis != 'fsdp') for name, axes in PARAMETER_RULES.items()
}
"""Parameters as layers compute with them: gathered over fsdp."""

ACTIVATION_RULES: Rules = {
    'batch': BATCH_AXES,
    'experts': ('expert',),
    'rows': tuple(axis for axis in BATCH_AXES if axis != 'expert'),  # where experts are split
    'places': ('context',),  # of tokens in experts, where sequences are whole
    'sequence': ('context',),
    'residual': ('context', 'tensor'),  # the sequence, where each position is on its own
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
    """The mesh axes of one array, as many of each rule's as divide it, and why not all.

    Raises: ConfigError on a name that is in no rule, or two dimensions on one mesh axis.
    """
    entries: list[tuple[str, ...] | None] = []
    refusals: list[str] = []
    for name, size in zip(names, shape, strict=True):
        wanted = _wanted(name, sizes, rules)
        axes = _dividing(wanted, size, sizes)
        if axes != wanted:
            parts = math.prod(sizes[axis] for axis in wanted)
            refusals.append(f'{name}={size} is not divisible by {"*".join(wanted)}={parts}')
        entries.append(axes or None)
    used = [axis for axes in entries if axes for axis in axes]
    if len(used) != len(set(used)):
        raise ConfigError(f'sharding rules put two of the axes {names} on one mesh axis')
    return PartitionSpec(*entries), refusals


def _wanted(name: str | None, sizes: Mapping[str, int], rules: Rules) -> tuple[str, ...]:
    if name is None:
        return ()
    if name not in rules:
        raise ConfigError(f'no sharding rule for axis {name!r}: {nearest(name, rules)}')
    return tuple(axis for axis in rules[name] if sizes.get(axis, 1) > 1)


def _dividing(axes: tuple[str, ...], size: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The first of the axes, as many as divide `size` together."""
    while size % math.prod(sizes[axis] for axis in axes):
        axes = axes[:-1]
    return axes


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


def check_parameters(axes: Any, shapes: Any, mesh: Mesh) -> None:
    """Raises: ConfigError if heads, hidden units or experts do not divide over their mesh axis.

    axes, shapes: as in `parameter_shardings`.
    """
    leaves = list(zip(jax.tree.leaves(axes), jax.tree.leaves(shapes), strict=True))
    for name, things in UNDIVIDED.items():
        (axis,) = PARAMETER_RULES[name]
        sizes = [
            leaf.shape[tuple(names).index(name)] for names, leaf in leaves if name in tuple(names)
        ]
        if sizes:
            check_divides(mesh, axis, math.gcd(*sizes), things)


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
    return _placed(jax.lax.optimization_barrier(parameter), names, IN_USE_RULES)


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


def activation_spec(names: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """Where `constrain` puts an array of that shape. Raises: ConfigError as it does."""
    return spec(names, shape, _mesh_sizes(), ACTIVATION_RULES)[0]


def parts(name: str, size: int) -> int:
    """Into how many parts an activation's axis `name` of that size is cut."""
    mesh = _mesh_sizes()
    axes = _dividing(_wanted(name, mesh, ACTIVATION_RULES), size, mesh)
    return math.prod(mesh[axis] for axis in axes)


def by_parts(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of (weights, *arrays [B, T, ...]), run for the part of each device by itself.

    Its first argument is whole over the axes that split rows and sequences; other axes stay with
    the compiler.
    """

    def of_all(weights: Any, *arrays: Any) -> Any:
        if _mesh_size() == 1:
            return function(weights, *arrays)
        part = PartitionSpec(BATCH_AXES, 'context')
        return jax.shard_map(
            function,
            axis_names={*BATCH_AXES, 'context'},
            in_specs=(PartitionSpec(), *(part for _ in arrays)),
            out_specs=part,
            check_vma=False,
        )(weights, *arrays)

    return of_all


def _mesh_size() -> int:
    return math.prod(_mesh_sizes().values())


def _mesh_sizes() -> dict[str, int]:
    """Of the axes that the compiler sees to; inside `shard_map` some are not."""
    mesh = jax.sharding.get_abstract_mesh()
    return {axis: size for axis, size in mesh.shape.items() if axis not in mesh.manual_axes}


def _placed(x: jax.Array, names: tuple[str | None, ...], rules: Rules) -> jax.Array:
    found, _ = spec(names, x.shape, _mesh_sizes(), rules)
    return jax.lax.with_sharding_constraint(x, found)
