import jax
import numpy as np
import pytest

from bigjax.config import MeshConfig
from bigjax.errors import ConfigError
from bigjax.sharding import mesh as meshes


def sizes(config: MeshConfig, *devices: int) -> dict[str, int]:
    """Without the axes of size 1."""
    return {axis: n for axis, n in meshes.mesh_sizes(config, *devices).items() if n > 1}


def test_the_axis_left_out_takes_what_is_over():
    assert sizes(MeshConfig(), 8) == {'data': 8}
    assert sizes(MeshConfig(fsdp=2, tensor=2), 8) == {'data': 2, 'fsdp': 2, 'tensor': 2}
    mesh = meshes.make_mesh(MeshConfig(fsdp=8))
    assert mesh.axis_names == meshes.AXES
    assert mesh.shape['fsdp'] == mesh.size == 8


@pytest.mark.parametrize(
    ('config', 'expected'),
    [
        (MeshConfig('fsdp'), {'fsdp': 16}),
        (MeshConfig('fsdp', data=4), {'data': 4, 'fsdp': 4}),
        (MeshConfig('hsdp', slice=2), {'slice': 2, 'fsdp': 8}),
        (MeshConfig('tp'), {'tensor': 16}),
        (MeshConfig('fsdp+tp'), {'fsdp': 4, 'tensor': 4}),
        (MeshConfig('fsdp+tp', tensor=2), {'fsdp': 8, 'tensor': 2}),
        (MeshConfig('fsdp+cp'), {'fsdp': 4, 'context': 4}),
        (MeshConfig('fsdp+ep', slice=2), {'slice': 2, 'fsdp': 4, 'expert': 2}),
    ],
)
def test_a_preset_names_a_mesh(config, expected):
    assert sizes(config, 16) == expected


def test_slices_that_the_devices_tell_of_get_an_axis():
    assert sizes(MeshConfig('fsdp'), 16, 2) == {'slice': 2, 'fsdp': 8}
    assert sizes(MeshConfig('fsdp', slice=1), 16, 2) == {'fsdp': 16}


@pytest.mark.parametrize('config', [MeshConfig(fsdp=3), MeshConfig(data=4), MeshConfig(tensor=16)])
def test_a_wrong_product_is_refused_with_meshes_that_fit(config):
    with pytest.raises(ConfigError, match=r'= 8 devices, got .*; meshes that fit: ') as error:
        meshes.make_mesh(config)
    offered = str(error.value).split('fit: ')[1].split(', or ')
    for mesh in offered:
        found = MeshConfig(**{k: int(n) for k, n in (axis.split('=') for axis in mesh.split())})
        assert meshes.make_mesh(found).size == 8


def test_the_nearest_mesh_comes_first():
    with pytest.raises(ConfigError, match='meshes that fit: fsdp=4 data=2, or '):
        meshes.make_mesh(MeshConfig(fsdp=3))


def test_batches_must_divide():
    mesh = meshes.make_mesh(MeshConfig(fsdp=2, tensor=2))
    meshes.check_batch_size(mesh, 16, 2, 'config.train.batch_size')
    with pytest.raises(ConfigError, match=r'multiple of 8 .*, got 20; use 16 or 24'):
        meshes.check_batch_size(mesh, 20, 2, 'config.train.batch_size')
    with pytest.raises(ConfigError, match=r'use 8$'):
        meshes.check_batch_size(mesh, 3, 2, 'config.train.batch_size')


def test_what_does_not_divide_is_refused_with_sizes_that_do():
    mesh = meshes.make_mesh(MeshConfig(data=1, tensor=8))
    meshes.check_divides(mesh, 'tensor', 24, 'heads')
    with pytest.raises(ConfigError) as error:
        meshes.check_divides(mesh, 'tensor', 12, 'heads')
    assert str(error.value) == (
        'config.mesh.tensor: 12 heads do not divide over tensor=8; use 2, 3, 4, 6 or 12'
    )


@pytest.mark.parametrize('config', [MeshConfig(), MeshConfig(fsdp=4), MeshConfig(data=1, tensor=8)])
def test_one_process_owns_every_row(config):
    sharding = meshes.batch_sharding(meshes.make_mesh(config))
    assert meshes.process_rows(sharding, 16).tolist() == list(range(16))


def test_rows_of_a_batch_lie_on_their_devices():
    sharding = meshes.batch_sharding(meshes.make_mesh(MeshConfig(fsdp=2, tensor=2)))
    rows = jax.device_put(np.arange(8), sharding)
    held = sorted({tuple(shard.data.tolist()) for shard in rows.addressable_shards})
    assert held == [(0, 1), (2, 3), (4, 5), (6, 7)]
