"""Silent data corruption: whether all devices that should hold the same parameters do."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigjax import trees
from bigjax.sharding.mesh import replicated


def comparer(mesh: Mesh, params: Any) -> Callable[[Any], list[str]]:
    """A function of the parameters: a line for each set of copies that are not equal bit for bit.

    params: abstract, with shardings. Each device hashes its own part of each leaf that another one
    has too, where it lies; what comes to the host is a word a device and leaf. Every process must
    call it.
    """
    leaves = jax.tree.leaves(params)
    copied = {i: name for i, name in enumerate(trees.names(params)) if _has_copies(mesh, leaves[i])}
    if not copied:
        return lambda params: []

    def hashes(parts: list[jax.Array]) -> jax.Array:
        return jnp.stack([_hash(part) for part in parts])[None]

    specs, everywhere = [leaves[i].sharding.spec for i in copied], PartitionSpec(mesh.axis_names)
    own = jax.shard_map(hashes, mesh=mesh, in_specs=(specs,), out_specs=everywhere, check_vma=False)
    function = jax.jit(own, out_shardings=replicated(mesh))

    def compare(params: Any) -> list[str]:
        now = jax.tree.leaves(params)
        found = np.asarray(function([now[i] for i in copied]))
        lines = {
            name: _difference(mesh, leaves[i].sharding, leaves[i].shape, words)
            for (i, name), words in zip(copied.items(), found.T, strict=True)
        }
        return [f'{name}: {line}' for name, line in lines.items() if line]

    return compare


def _has_copies(mesh: Mesh, leaf: jax.ShapeDtypeStruct) -> bool:
    places = leaf.sharding.devices_indices_map(leaf.shape)
    return len(set(map(str, places.values()))) < mesh.size


def _hash(leaf: jax.Array) -> jax.Array:
    """uint32 []: bits times odd numbers that tell places apart, so one changed element shows."""
    width = jnp.dtype(leaf.dtype).itemsize * 8
    bits = lax.bitcast_convert_type(leaf, jnp.dtype(f'uint{width}')).astype(jnp.uint32).ravel()
    places = lax.iota(jnp.uint32, bits.size) * jnp.uint32(2654435761) * jnp.uint32(2)
    return jnp.sum(bits * (places + jnp.uint32(1)), dtype=jnp.uint32)


def _difference(
    mesh: Mesh, sharding: NamedSharding, shape: tuple[int, ...], found: np.ndarray
) -> str | None:
    order: dict[Any, int] = {device: i for i, device in enumerate(mesh.devices.flat)}
    places: dict[Any, Any] = dict(sharding.devices_indices_map(shape))
    copies: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for device, index in places.items():
        where = f'{device.id} (process {device.process_index})'
        copies[str(index)][int(found[order[device]])].append(where)
    for groups in copies.values():
        if len(groups) > 1:
            *odd, most = sorted(groups.values(), key=len)
            others = ', '.join(name for group in odd for name in group)
            return f'device {others} differs from device {", ".join(most)}'
    return None
