"""docs/extending.md as a reader follows it: its files are written, its commands are run."""

import importlib
import json
import math
import os
import re
import shlex
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bigjax import cli, config_file
from bigjax import config as configs
from bigjax.config import OptimizerConfig
from bigjax.data import batches
from bigjax.optim import optimizers
from bigjax.sharding.mesh import replicated
from bigjax.train.build import build
from bigjax.train.step import train_step

DOCUMENT = (Path(__file__).parents[1] / 'docs' / 'extending.md').read_text()
BLOCKS = re.findall(r'^```(\w+) ?([^\n]*)\n(.*?)^```$', DOCUMENT, re.MULTILINE | re.DOTALL)
SHELL = '\n'.join(text for kind, _, text in BLOCKS if kind == 'sh').replace('\\\n', '')
LINES = [line for line in SHELL.splitlines() if line]
TRAINING = [line for line in LINES if line.startswith('bigjax train')]
OVERRIDES = {
    'residual': [],
    'fourier': [('model', 'my_lab.fourier')],
    'nnx_mlp': [('model', 'my_lab.nnx_mlp'), ('model.dropout', '0.1')],
}


@pytest.fixture(scope='module', autouse=True)
def lab(tmp_path_factory):
    """The reader's directory, entered."""
    folder = tmp_path_factory.mktemp('reader')
    for kind, name, text in BLOCKS:
        if kind == 'python':
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        patch.setenv('COLUMNS', '120')
        yield folder
    for name in [name for name in sys.modules if name.partition('.')[0] == 'my_lab']:
        del sys.modules[name]


def bigjax(line: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == 'bigjax'
    assert cli.main(arguments) == 0


def test_nothing_in_the_document_goes_unchecked():
    assert {kind for kind, _, _ in BLOCKS} == {'python', 'sh', 'text'}
    assert all(name.startswith('my_lab/') for kind, name, _ in BLOCKS if kind == 'python')
    assert all(f'my_lab/{name}.py' in DOCUMENT for name in OVERRIDES)
    (export,) = (line for line in LINES if not line.startswith('bigjax'))
    assert export.removeprefix('export XLA_FLAGS=') in os.environ['XLA_FLAGS']


def test_describe_prints_what_the_document_shows(capsys):
    (line,) = (line for line in LINES if line.startswith('bigjax describe'))
    (shown,) = (text for kind, _, text in BLOCKS if kind == 'text')
    bigjax(line)
    printed = capsys.readouterr().out.splitlines()
    for row in shown.splitlines():
        assert row in printed


@pytest.mark.parametrize('line', TRAINING, ids=lambda line: re.search(r'runs/(\w+)', line)[1])
def test_training(line, lab):
    bigjax(line)
    run = lab / re.search(r'--workdir=(\S+)', line)[1]
    config = configs.flatten(json.loads((run / 'config.json').read_text()))
    for key, value in re.findall(r'--config\.(\S+)=(\S+)', line):
        assert str(config.get(key, config.get(f'{key}.name'))) == value
    for split in ('val', 'test'):
        metrics = json.loads((run / 'evaluation' / f'{split}.json').read_text())['metrics']
        assert metrics['accuracy'] > 0.95  # by chance, a third


@pytest.mark.parametrize('model', OVERRIDES)
def test_a_mesh_changes_no_loss(model, monkeypatch):
    split, params = losses(model, [('mesh.fsdp', '2'), ('mesh.tensor', '2')])
    assert any(p.addressable_shards[0].data.size < p.size for p in jax.tree.leaves(params))
    one_device = jax.devices()[:1]
    monkeypatch.setattr('bigjax.sharding.mesh.jax.devices', lambda: one_device)
    whole, _ = losses(model, [])
    np.testing.assert_allclose(split, whole, rtol=2e-5)
    assert whole[0] != whole[-1]


def losses(model, mesh, steps=3):
    """The losses of the first steps of the document's config, and the parameters after them."""
    config = config_file.load('my_lab/config.py', [*OVERRIDES[model], *mesh])
    run = build(config)
    size = config.train.batch_size
    step = jax.jit(
        partial(train_step, run.recipe),
        out_shardings=(run.shardings, replicated(run.mesh)),
        compiler_options={'xla_backend_optimization_level': 0},  # fast to compile
    )
    found = []
    with jax.set_mesh(run.mesh):
        state = run.init()
        for index in range(steps):
            source = run.splits.sources['train']
            batch = batches.train_batch(source, config.seed, index, size, slice(0, size))
            state, logged = step(state, batches.to_device(batch, run.batch_sharding, size))
            found.append(float(logged['loss']))
    return found, state.params


def test_the_focal_loss():
    focal = importlib.import_module('my_lab.focal')
    batch = {'inputs': None, 'targets': jnp.array([0, 2]), 'weights': jnp.ones(2)}
    for gamma in (1.0, 3.0):
        found = focal.loss(focal.Config(gamma), lambda inputs: jnp.zeros((2, 3)), batch)
        expected = (2 / 3) ** gamma * math.log(3)  # each of three classes has a chance of 1/3
        np.testing.assert_allclose(found.values, [expected] * 2, rtol=1e-5)


def test_the_optimizer_normalises_each_layer_of_a_stack():
    config = OptimizerConfig('my_lab.normalised')
    grads = {'kernel': jax.random.normal(jax.random.key(0), (3, 4, 5))}
    axes = {'kernel': P('layers', 'embed', 'mlp')}
    optimizer = optimizers.build(config, lambda step: 0.1, grads, axes)
    update, _ = optimizer.update(grads, optimizer.init(grads), grads)
    for layer, grad in zip(update['kernel'], grads['kernel'], strict=True):
        np.testing.assert_allclose(layer, -0.1 * grad / np.linalg.norm(grad), rtol=1e-5)
