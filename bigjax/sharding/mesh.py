"""The device mesh, and which rows of a batch belong to this process."""

import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bigjax.config import MeshConfig
from bigjax.errors import ConfigError

AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')
"""Mesh axes over which the rows of a batch are spread."""


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all `devices` (default: every device of every process).

    Raises: ConfigError if the axes' product is not the number of devices, naming the nearest
    meshes.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(config, len(devices))
    grid = mesh_utils.create_device_mesh(sizes, devices=devices, allow_split_physical_axes=True)
    # Auto axes: the compiler propagates shardings. make_mesh would default to Explicit ones.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(config: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """Sizes of (data, fsdp, tensor) on `num_devices`; `data` left out takes what is over."""
    rest = config.fsdp * config.tensor
    data = num_devices // rest if config.data is None else config.data
    if data * rest == num_devices:
        return data, config.fsdp, config.tensor
    asked = f'data={config.data}, fsdp={config.fsdp}, tensor={config.tensor}'
    options = ', '.join('x'.join(map(str, mesh)) for mesh in _nearest(config, num_devices))
    raise ConfigError(
        f'config.mesh: expected data x fsdp x tensor = {num_devices} devices, got {asked}; '
        f'meshes that fit: {options}'
    )


def _nearest(config: MeshConfig, num_devices: int, count: int = 4) -> list[tuple[int, int, int]]:
    divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    meshes = [
        (num_devices // (fsdp * tensor), fsdp, tensor)
        for fsdp in divisors
        for tensor in divisors
        if num_devices % (fsdp * tensor) == 0
    ]

    def distance(mesh: tuple[int, int, int]) -> float:
        wanted = (config.data or mesh[0], config.fsdp, config.tensor)
        return sum(abs(math.log(have / want)) for have, want in zip(mesh, wanted, strict=True))

    return sorted(meshes, key=distance)[:count]


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
            f'(data x fsdp x accumulation), got {batch_size}; use {choices}'
        )


def process_rows(sharding: NamedSharding, batch_size: int) -> slice:
    """The contiguous rows of a global batch that live on this process's devices."""
    owned = [
        index[0].indices(batch_size)
        for index in sharding.addressable_devices_indices_map((batch_size,)).values()
        if index is not None
    ]
    start, stop = min(rows[0] for rows in owned), max(rows[1] for rows in owned)
    covered = np.zeros(stop - start, bool)
    for first, last, _ in owned:
        covered[first - start : last - start] = True
    if not covered.all():
        raise ConfigError(
            'this mesh gives a process rows that are not contiguous; reorder its axes'
        )
    return slice(start, stop)
