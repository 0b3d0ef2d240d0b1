"""A model and data of the user's own, killed for real, and some that must not pass."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bigjax.errors import ConfigError
from bigjax.sharding.mesh import AXES
from bigjax.train import verify_resume
from bigjax.train.killing import Place, Trace
from bigjax.train.verify_resume import compare, place

ROOT = Path(__file__).parents[2]

CONFIG = """
def get_config(kind='sound'):
    return {
        'model': {'name': 'lab.model', 'kind': kind},
        'task': 'classification',
        'data': {'name': 'lab.points', 'kind': kind},
        'train': {'steps': 100, 'batch_size': 8},
        'optimizer': {'learning_rate': 0.01, 'schedule': 'cosine'},
        'eval': {'every': 1},
    }
"""

MODEL = """
from dataclasses import dataclass

import flax.linen as nn
import jax
import numpy as np

from bigjax.models.core import from_linen
from bigjax.nn.linear import Dense

@dataclass(frozen=True)
class Config:
    kind: str = 'sound'

calls = 0

def how_often():
    global calls
    calls += 1
    return np.float32(calls)

class Linear(nn.Module):
    config: Config
    outputs: int

    @nn.compact
    def __call__(self, x, train):
        if self.config.kind == 'model' and train:  # it remembers, and no checkpoint does
            x = x * jax.pure_callback(how_often, jax.ShapeDtypeStruct((), np.float32))
        return Dense(self.outputs, ('input', 'output'), name='read_out')(x)

def build(config, inputs, outputs, dtype):
    return from_linen(Linear(config, outputs), inputs)
"""

POINTS = """
import os
from dataclasses import dataclass

import jax
import numpy as np

from bigjax.data.core import ArraySource, Dataset, DataSpec

@dataclass(frozen=True)
class Config:
    kind: str = 'sound'

class Unsound(ArraySource):
    reads = 0

    def __getitem__(self, indices):
        rows = super().__getitem__(indices)
        if len(indices) > 8:
            return rows
        Unsound.reads += 1
        return {**rows, 'inputs': rows['inputs'] + np.float32(Unsound.reads)}

class Random(ArraySource):
    rng = np.random.default_rng()

    def __getitem__(self, indices):
        return super().__getitem__(self.rng.integers(len(self), size=len(indices)))

SOURCES = {'data': Unsound, 'random': Random}

def load(config):
    rng = np.random.default_rng(0)
    rows = {'inputs': rng.normal(size=(64, 4)).astype(np.float32),
            'targets': rng.integers(3, size=64).astype(np.int32)}
    spec = DataSpec(jax.ShapeDtypeStruct((4,), np.float32),
                    jax.ShapeDtypeStruct((), np.int32), num_classes=3)
    source = SOURCES.get(config.kind, ArraySource)
    return Dataset({'train': source(rows), 'val': ArraySource(rows)},
                   lambda train: (spec, lambda raw: raw))
"""


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp('user')
    (folder / 'config.py').write_text(CONFIG)
    (folder / 'lab').mkdir()
    (folder / 'lab' / 'model.py').write_text(MODEL)
    (folder / 'lab' / 'points.py').write_text(POINTS)
    return folder


def command(folder, config, *flags):
    """Exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, '-m', 'bigjax.cli', 'verify-resume', f'--config={config}', *flags],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_the_users_own_model_and_data_hold(lab, tmp_path):
    meshes = ['data=1', 'processes=2,fsdp=2,data=2', 'processes=2,tensor=2', 'data=16']
    code, said = command(lab, 'config.py', '--meshes', *meshes, f'--workdir={tmp_path}')
    assert code == 0, said
    table = [re.split(r' {2,}', line) for line in said.splitlines() if line.endswith('holds')]
    assert [row[:2] for row in table] == [
        ['data=4', '1'],
        ['one device', '1'],
        ['data=2 fsdp=2', '2'],
        ['tensor=2', '2'],
    ]
    for _, _, killed, resumed, same, losses, *_ in table:
        (first, second), (one, two) = (map(int, cell.split(', ')) for cell in (killed, resumed))
        assert 2 <= first <= 3 < 5 <= second <= 6
        assert 2 <= one <= first + 1 < two <= second + 1
        assert same == '8/8'
        assert losses == 'equal' or float(losses) <= 1e-5
    assert table[0][5] == 'equal'
    assert 'data=16: skipped: bad value for config.train.batch_size: expected a multiple' in said
    assert len(list((tmp_path / '3').glob('*.jsonl'))) == 2 + 1 + 2  # a process each


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kind', 'problem'),
    [
        ('data', r'step [3-7] has another batch: row 0, 8 in all'),
        ('random', r'step 1 has another batch: row \d, \d in all'),
        ('model', r'step [3-7] has another loss: [\d.]+ undisturbed, here [\d.]+'),
    ],
)
def test_hidden_state_is_found_out(lab, kind, problem):
    code, said = command(lab, f'config.py:{kind}', '--meshes')
    assert code == 1, said
    assert re.search(problem, said.splitlines()[-1])


@pytest.mark.slow
def test_a_config_that_does_not_run_is_refused(lab, tmp_path):
    code, said = command(lab, 'config.py', '--config.model.kind=1')
    assert code == 78
    assert said.splitlines()[-1].startswith(
        'bigjax: the undisturbed run ended: bad value for config.model.kind'
    )
    code, said = command(lab, 'config.py', '--config.train.steps=7')
    assert code == 78
    assert 'expected a config of 8 steps or more, got 7; use --steps=3' in said


LOSSES = [(1, 0.5), (2, 0.25), (3, 0.125)]
BATCHES = {step: {'0': {f'a{step}'}, '1': {f'b{step}'}} for step in (1, 2, 3)}
WHOLE = Trace(LOSSES, BATCHES, [2, 4], [2, 4])


@pytest.mark.parametrize(
    ('found', 'problem'),
    [
        (WHOLE, None),
        (WHOLE._replace(rows={**BATCHES, 4: {'0': {'a4'}}}), None),  # on its way at the kill
        (
            WHOLE._replace(resumed=[2, 0]),
            'resumed from step 2, 0, but the newest checkpoints were of 2, 4',
        ),
        (WHOLE._replace(losses=LOSSES[:2]), 'logged are steps 1, 2'),
        (WHOLE._replace(losses=[*LOSSES[:2], *LOSSES[1:]]), 'logged are steps 1, 2, 2, 3'),
        (
            WHOLE._replace(losses=[*LOSSES[:2], (3, 0.1250001)]),
            'step 3 has another loss: 0.125 undisturbed, here 0.1250001',
        ),
        (
            WHOLE._replace(losses=[*LOSSES[:2], (3, float('nan'))]),
            'step 3 has another loss: 0.125 undisturbed, here nan',
        ),
        (
            WHOLE._replace(rows={**BATCHES, 2: {'0': {'a2'}, '1': {'b2', 'b3'}}}),
            'step 2 has another batch: row 1, 1 in all',
        ),
        (
            WHOLE._replace(rows={**BATCHES, 2: {'0': {'a2'}}}),
            'step 2 has another batch: row 1, 1 in all',
        ),
        (
            WHOLE._replace(rows={**BATCHES, 2: {**BATCHES[2], '2': {'c2'}}}),
            'step 2 has another batch: row 2, 1 in all',
        ),
    ],
)
def test_what_differs_is_told(found, problem):
    assert compare(WHOLE, found, 0.0)[0] == problem


def test_losses_agree_to_the_tolerance():
    found = WHOLE._replace(losses=[(1, 0.5), (2, 0.25000025), (3, 0.125)])
    assert compare(WHOLE, found, 1e-5) == (None, 3, pytest.approx(1e-6, rel=1e-3))
    assert compare(WHOLE, found, 1e-7)[0].startswith('step 2 has another loss')


def test_places_are_read():
    own = Place({**dict.fromkeys(AXES, 1), 'data': 4})
    assert place('fsdp=2,tensor=3', own).sizes == {
        **dict.fromkeys(AXES, 1),
        'fsdp': 2,
        'tensor': 3,
    }
    assert place('processes=2', own) == Place(own.sizes, 2)
    assert place('processes=2,data=2', own).processes == 2
    for wrong in ('fsp=2', 'fsdp', 'fsdp=0', 'fsdp=x', '', 'processes=3', 'processes=2,fsdp=3'):
        with pytest.raises(ConfigError, match='--meshes'):
            place(wrong, own)


def test_the_shipped_places_are_places():
    own = Place(dict.fromkeys(AXES, 1))
    assert all(place(text, own) for text in verify_resume.MESHES)
