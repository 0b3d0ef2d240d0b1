import dataclasses
import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bigjax.config import MeshConfig
from bigjax.nn import params
from bigjax.sharding.mesh import BATCH_AXES
from bigjax.train import check_mesh
from bigjax.train.build import build
from bigjax.train.check_mesh import TOLERANCES, Trace, follow, meshes
from tests.train.tiny import blobs, sentences, tiny_config

CUBE = {'data': 2, 'fsdp': 2, 'tensor': 2}
compare = functools.partial(check_mesh.compare, tolerance=TOLERANCES['float32'], noise={})
PERCEPTRON = {'name': 'mlp', 'widths': (16, 32)}
CONFIG = """
def get_config():
    return {'model': {'name': 'mlp', 'widths': (8,)}, 'task': 'classification', 'data': 'wine',
            'train': {'steps': 4, 'batch_size': 100}, 'mesh': {'tensor': 4}}
"""


def config(**values):
    return tiny_config(**{'model': PERCEPTRON, 'train.batch_size': 16, **values})


@functools.cache
def alone():
    run = build(config(), blobs(), jax.devices()[:1])
    return follow(run, run.init(), 2)


def spread(mesh, change=lambda run: run):
    """The same on a mesh, with a change."""
    run = build(config(mesh=mesh), blobs())
    return follow(change(run), run.init(), 2)


def test_noise_is_the_same_on_any_mesh():
    """And so are, to what counts, gradients that are zero but for rounding: of biases that a batch
    norm takes off again."""
    values = {
        'model': {**PERCEPTRON, 'dropout': 0.5, 'norm': 'batch'},
        'train': {'steps': 6, 'batch_size': 32, 'accumulation': 2},
    }
    one = build(config(**values), blobs(), jax.devices()[:1])
    many = build(config(**values, mesh={'fsdp': 4, 'tensor': 2}), blobs())
    found = compare(*(follow(run, run.init(), 3) for run in (one, many)))
    assert max(found.values()).value <= TOLERANCES['float32']
    assert found['init'].value == 0


def test_bfloat16_may_be_off_by_what_one_device_is():
    values = {'precision.compute': 'bfloat16'}
    run = build(config(**values), blobs(), jax.devices()[:1])
    one = follow(run, run.init(), 2)
    noise = check_mesh.rounding(run, one)
    gradient = one.gradients[0]['hidden_1/dense/kernel']
    assert 1e-4 < noise['hidden_1/dense/kernel'] / np.linalg.norm(gradient) < 0.05
    assert check_mesh.rounding(build(config(), blobs()), alone()) == {}


def test_wrong_gradients_of_the_compiler_are_found(monkeypatch):
    """As in tests/sharding/test_rules.py: weights split two ways, and nothing said of their use."""
    monkeypatch.setattr(params, 'in_use', lambda parameter, names: parameter)
    found = compare(alone(), spread({'data': 2, 'fsdp': 2, 'tensor': 2}))
    assert found['init'].value < 1e-6
    assert found['gradient'].value > 0.01
    assert found['gradient'].where.startswith('gradient of hidden_')


def with_loss(loss):
    """A run whose task has another loss: values -> values."""

    def change(run):
        original = run.recipe.task.loss

        def changed(apply, batch):
            found = original(apply, batch)
            return dataclasses.replace(found, values=loss(found.values))

        task = dataclasses.replace(run.recipe.task, loss=changed)
        return dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, task=task))

    return change


def test_a_loss_of_a_shard_is_found():
    def by_shard(values):
        if jax.sharding.get_abstract_mesh().size == 1:
            return values
        rows = P(BATCH_AXES)
        return jax.shard_map(lambda v: v * v / v.mean(), in_specs=rows, out_specs=rows)(values)

    found = compare(alone(), spread({'data': 4, 'tensor': 2}, with_loss(by_shard)))
    assert found['loss'].value > 0.01


def test_a_value_that_counts_devices_is_found():
    def by_devices(values):
        return values / jax.sharding.get_abstract_mesh().size

    found = compare(alone(), spread({'tensor': 8}, with_loss(by_devices)))
    assert found['loss'].value == pytest.approx(7 / 8, abs=0.01)
    assert found['gradient'].value == pytest.approx(7 / 8)


def test_another_step_from_the_same_gradients_is_found():
    def change(run):
        inner = run.recipe.optimizer

        def update(gradients, state, params=None):
            updates, state = inner.update(gradients, state, params)
            count = jax.sharding.get_abstract_mesh().size
            return jax.tree.map(lambda update: update / count, updates), state

        recipe = dataclasses.replace(run.recipe, optimizer=inner._replace(update=update))
        return dataclasses.replace(run, recipe=recipe)

    found = compare(alone(), spread({'data': 8}, change))
    assert found['gradient'].value < 1e-5
    assert found['parameters'].value > 0.5


def test_differences_by_hand():
    def trace(loss, large, small, end):
        gradient = {'large': np.array([3.0, 4.0]) * large, 'small': np.array([1e-6, 0]) * small}
        start = {'large': np.zeros(2), 'small': np.ones(2)}
        return Trace([loss], [gradient], start, {**start, 'large': np.array(end)})

    one = trace(2.0, 1, 1, [0.1, 0.2])
    found = compare(one, trace(2.1, 1.001, 2, [0.1, 0.2]))
    assert found['loss'].value == pytest.approx(0.05)
    assert found['gradient'] == (pytest.approx(1e-3), 'gradient of large')  # small is 2e-4 of 5e-3
    assert found['parameters'].value == 0
    noisy = compare(one, trace(2.0, 1.001, 2, [0.1, 0.2]), noise={'large': 3e-3})
    assert noisy['gradient'] == (pytest.approx(2e-4), 'gradient of small')
    assert compare(one, trace(2.0, 1, 1, [0.1, 0.1]))['parameters'].value == pytest.approx(5**-0.5)
    assert compare(one, trace(np.nan, 1, 1, [0.1, 0.2]))['loss'].value == np.inf


def test_meshes_are_of_axes_that_split_something():
    mlp, own = build(config(), blobs()), MeshConfig(fsdp=2)
    assert list(meshes(mlp, own, 8)) == [
        'data=4 fsdp=2 (config)',
        'data=8 (dp)',
        'fsdp=8 (fsdp)',
        'tensor=8 (tp)',
        'fsdp=4 tensor=2 (fsdp+tp)',
        'data=2 fsdp=2 tensor=2',
        'slice=2 fsdp=4',
        'slice=2 tensor=4',
    ]
    model = {'name': 'transformer', 'layers': 1, 'width': 8, 'heads': 2, 'vocab_size': 16}
    decoder = build(tiny_config(model=model, task='language_model'), sentences())
    assert 'fsdp=2 context=2 tensor=2' in meshes(decoder, own, 8)
    assert list(meshes(mlp, own, 6)) == ['data=3 fsdp=2 (config)', 'data=6 (dp)', 'fsdp=6 (fsdp)',
                                    'tensor=6 (tp)', 'fsdp=3 tensor=2 (fsdp+tp)',
                                    'slice=2 fsdp=3', 'slice=2 tensor=3']  # fmt: skip


def command(tmp_path, *flags, **environment):
    path = tmp_path / 'tiny.py'
    path.write_text(CONFIG)
    words = [sys.executable, '-m', 'bigjax.cli', 'check-mesh', f'--config={path}', '--steps=1']
    return subprocess.run(
        [*words, *flags],
        env={key: value for key, value in os.environ.items() if key != 'XLA_FLAGS'} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_makes_virtual_devices(tmp_path):
    done = command(tmp_path)
    assert done.returncode == 0, done.stderr
    assert '1 steps of 16 rows' in done.stdout
    assert 'on 8 x cpu against one' in done.stdout
    assert 'data=2 tensor=4 (config)' in done.stdout
    assert done.stdout.splitlines()[-1] == '8 meshes compute what one device does'


def test_the_command_names_the_worst(tmp_path):
    two = '--xla_force_host_platform_device_count=2'
    done = command(tmp_path, '--tolerance=0', '--config.mesh.tensor=2', XLA_FLAGS=two)
    assert done.returncode == 1, done.stderr
    assert 'meshes differ from one device, most by' in done.stdout.splitlines()[-1]
    one = '--xla_force_host_platform_device_count=1'
    done = command(tmp_path, XLA_FLAGS=one)
    assert done.returncode == 78
    assert 'needs several devices' in done.stderr
