import jax
import numpy as np
import pytest

from bigjax.config import MeshConfig
from bigjax.errors import ConfigError
from bigjax.sharding import mesh as meshes


def test_the_axis_left_out_takes_what_is_over():
    assert meshes.mesh_sizes(MeshConfig(), 8) == (8, 1, 1)
    assert meshes.mesh_sizes(MeshConfig(fsdp=2, tensor=2), 8) == (2, 2, 2)
    assert dict(meshes.make_mesh(MeshConfig(fsdp=8)).shape) == {'data': 1, 'fsdp': 8, 'tensor': 1}


@pytest.mark.parametrize('config', [MeshConfig(fsdp=3), MeshConfig(data=4), MeshConfig(tensor=16)])
def test_a_wrong_product_is_refused_with_meshes_that_fit(config):
    with pytest.raises(
        ConfigError, match=r'= 8 devices, got .*; meshes that fit: \dx\dx\d'
    ) as error:
        meshes.make_mesh(config)
    offered = str(error.value).split('fit: ')[1].split(', ')
    assert all(np.prod([int(n) for n in mesh.split('x')]) == 8 for mesh in offered)


def test_the_nearest_mesh_comes_first():
    with pytest.raises(ConfigError, match='meshes that fit: 2x4x1'):
        meshes.make_mesh(MeshConfig(fsdp=3))


def test_batches_must_divide():
    mesh = meshes.make_mesh(MeshConfig(fsdp=2, tensor=2))
    meshes.check_batch_size(mesh, 16, 2, 'config.train.batch_size')
    with pytest.raises(ConfigError, match=r'multiple of 8 .*, got 20; use 16 or 24'):
        meshes.check_batch_size(mesh, 20, 2, 'config.train.batch_size')
    with pytest.raises(ConfigError, match=r'use 8$'):
        meshes.check_batch_size(mesh, 3, 2, 'config.train.batch_size')


@pytest.mark.parametrize('config', [MeshConfig(), MeshConfig(fsdp=4), MeshConfig(data=1, tensor=8)])
def test_one_process_owns_every_row(config):
    sharding = meshes.batch_sharding(meshes.make_mesh(config))
    assert meshes.process_rows(sharding, 16) == slice(0, 16)


def test_rows_of_a_batch_lie_on_their_devices():
    sharding = meshes.batch_sharding(meshes.make_mesh(MeshConfig(fsdp=2, tensor=2)))
    rows = jax.device_put(np.arange(8), sharding)
    held = sorted({tuple(shard.data.tolist()) for shard in rows.addressable_shards})
    assert held == [(0, 1), (2, 3), (4, 5), (6, 7)]
