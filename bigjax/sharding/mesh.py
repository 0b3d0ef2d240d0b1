"""The device mesh, and which rows of a batch belong to this process."""

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bigjax.config import MeshConfig
from bigjax.errors import ConfigError

AXES = ('slice', 'data', 'fsdp', 'expert', 'context', 'tensor')
"""Slowest links first: neighbours along the last axis talk most."""
BATCH_AXES = ('slice', 'data', 'fsdp', 'expert')
"""Mesh axes over which the rows of a batch are spread."""


class Preset(NamedTuple):
    """rest: the axis that takes the devices left over. shared: the axis that, left out, takes about
    the square root of them, at most 8. by_node: weights are copied to every node."""

    rest: str
    shared: str | None = None
    by_node: bool = False


PRESETS = {
    'dp': Preset('data'),
    'fsdp': Preset('fsdp'),
    'hsdp': Preset('fsdp', by_node=True),
    'tp': Preset('tensor'),
    'fsdp+tp': Preset('fsdp', 'tensor'),
    'fsdp+cp': Preset('fsdp', 'context'),
    'fsdp+ep': Preset('fsdp', 'expert'),
}


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all `devices` (default: every device of every process).

    Raises: ConfigError if the axes' product is not the number of devices, naming the nearest
    meshes.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(config, len(devices), _num_slices(devices, PRESETS[config.preset].by_node))
    shape = tuple(sizes.values())
    options: Any = {'devices': devices, 'allow_split_physical_axes': True}
    if sizes['slice'] > 1 and _num_slices(devices, False) == sizes['slice']:
        within, between = (1, *shape[1:]), (sizes['slice'],) + (1,) * len(shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(within, between, **options)
    else:  # by process, where nothing tells slices
        grid = mesh_utils.create_device_mesh(shape, **options)
    # Auto axes: the compiler propagates shardings. make_mesh would default to Explicit ones.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(config: MeshConfig, num_devices: int, num_slices: int = 1) -> dict[str, int]:
    """The size of every axis on `num_devices`, of which `num_slices` groups are far apart.

    Raises: ConfigError as `make_mesh` does.
    """
    asked = {axis: getattr(config, axis) for axis in AXES}
    asked = {axis: size for axis, size in asked.items() if size is not None}
    preset = PRESETS[config.preset]
    sizes = {'slice': num_slices, **asked} if num_slices > 1 else dict(asked)
    if preset.shared is not None and preset.shared not in asked:
        left = max(num_devices // math.prod(sizes.values()), 1)
        sizes[preset.shared] = min(8, 2 ** ((left.bit_length() - 1) // 2))
    if preset.rest not in asked:
        sizes[preset.rest] = num_devices // math.prod(sizes.values())
    if math.prod(sizes.values()) == num_devices:
        return {axis: sizes.get(axis, 1) for axis in AXES}
    wanted = {**sizes, preset.rest: asked.get(preset.rest)}
    raise ConfigError(
        f'config.mesh: expected {" x ".join(wanted)} = {num_devices} devices, got '
        + ', '.join(f'{axis}={size or "what is over"}' for axis, size in wanted.items())
        + f'; meshes that fit: {", or ".join(_nearest(wanted, num_devices))}'
    )


def _nearest(wanted: dict[str, int | None], num_devices: int, count: int = 4) -> list[str]:
    """The closest ways to spread the devices over the axes wanted, as one would write them."""
    divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    meshes = [
        mesh
        for mesh in itertools.product(divisors, repeat=len(wanted))
        if math.prod(mesh) == num_devices
    ]

    def distance(mesh: tuple[int, ...]) -> float:
        pairs = zip(mesh, wanted.values(), strict=True)
        return sum(abs(math.log(have / want)) for have, want in pairs if want is not None)

    return [
        ' '.join(f'{axis}={size}' for axis, size in zip(wanted, mesh, strict=True))
        for mesh in sorted(meshes, key=distance)[:count]
    ]


def _num_slices(devices: list[jax.Device], by_node: bool) -> int:
    """How many groups of devices have a slow network between them: TPU slices, or nodes too."""
    if devices[0].platform == 'tpu':
        return len({getattr(device, 'slice_index', 0) for device in devices})
    return len({device.process_index for device in devices}) if by_node else 1


def describe_mesh(sizes: Mapping[str, int]) -> str:
    """The axes of more than one device, as `fsdp=4 tensor=2`; sizes: `mesh.shape`."""
    split = [f'{axis}={size}' for axis, size in sizes.items() if size > 1]
    return ' '.join(split) or 'one device'


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all axes that split the batch, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def num_batch_shards(mesh: Mesh) -> int:
    """Over how many parts the rows of a batch are spread."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(mesh: Mesh, batch_size: int, accumulation: int, where: str) -> None:
    """Raises: ConfigError unless every device gets the same number of rows in every microbatch."""
    shards = num_batch_shards(mesh) * accumulation
    if batch_size % shards:
        below, above = batch_size // shards * shards, -(-batch_size // shards) * shards
        choices = f'{below} or {above}' if below else f'{above}'
        raise ConfigError(
            f'bad value for {where}: expected a multiple of {shards} '
            f'(devices that split the batch x accumulation), got {batch_size}; use {choices}'
        )


def check_divides(mesh: Mesh, axis: str, size: int, what: str, instead: str = '') -> None:
    """Raises: ConfigError unless `axis` divides the `size` things called `what`, with the nearest
    sizes that do."""
    parts = mesh.shape[axis]
    if size % parts:
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        near = sorted(sorted(divisors, key=lambda n: abs(math.log(n / parts)))[:5])
        *first, last = map(str, near)
        raise ConfigError(
            f'config.mesh.{axis}: {size} {what} do not divide over {axis}={parts}; use '
            + (f'{", ".join(first)} or {last}' if first else last)
            + instead
        )


def process_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """The rows of a global batch that live on this process's devices, ascending int64 [R].

    They need not be neighbours: along a ring over a torus a host's chips may lie far apart. Where
    an axis that does not split rows spans processes, several own the same rows.
    """
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))
