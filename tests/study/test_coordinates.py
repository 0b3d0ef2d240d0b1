"""Activations move as far in a wide model as in a narrow one under muP; under SP they do not."""

import argparse
import math

import numpy as np
import pytest

from bigjax import cli
from bigjax.config import resolve
from bigjax.errors import ConfigError
from bigjax.study import coordinates

TEXT = {
    'name': 'text',
    'path': argparse.__file__,
    'splits': {'train': 'train[:90%]', 'val': 'train[90%:]'},
    'tokenizer': 'characters',
    'sequence_length': 32,
}
CASES = {  # name, base, widths, learning rate, other fields
    'mlp': ({'widths': (16, 16)}, (256, 1024), 1e-2, {}),
    'cnn': ({'channels': (16, 16), 'dense': (16,)}, (128, 512), 2e-3, {'pools': 2}),
    'resnet': ({'width': 2}, (24, 96), 1e-2, {'stem': 'cifar'}),
    'transformer': (
        {'width': 64, 'heads': 1},
        (128, 512),
        2**-10,
        {'layers': 1, 'bias': False, 'tied': False, 'positions': 'rope'},
    ),
}
"""Base models far below the widths: what they start with is small there, and so is its noise."""


def a_config(kind, name, **fields):
    base, _, rate, options = CASES[kind]
    is_text = kind == 'transformer'
    config = {
        'model': {'name': kind, **base, **options},
        'task': 'language_model' if is_text else 'classification',
        'data': TEXT if is_text else 'digits',
        'train': {'steps': 4, 'batch_size': 16 if is_text else 64},
        'optimizer': {'name': 'adamw', 'learning_rate': rate},
        'parametrization': {'name': name, 'base': base},
    }
    return resolve(config | fields)


def measured(model, name, steps):
    configs = coordinates.widened(a_config(model, name), CASES[model][1])
    return coordinates.slopes(coordinates.measure(configs, steps, 4, lambda _: None))


@pytest.mark.parametrize(
    'model',
    ['mlp', *(pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != 'mlp')],
)
def test_flat_under_mup_and_not_under_sp(model):
    verdict = coordinates.judge(measured(model, 'mup', 4))
    assert verdict.passed, verdict
    plain = measured(model, 'sp', 1)
    assert plain['output'][1] >= 0.6
    assert not coordinates.judge(plain).passed


def test_slopes_are_powers_of_the_size():
    rows = [
        {'size': size, 'seed': seed, 'step': step, 'name': name, 'delta': scale * size**power}
        for name, power in (('steep', 0.7), ('flat', 0.0), ('still', 0.0))
        for size in (8, 32, 64)
        for seed, scale in enumerate((1.0, 2.0))
        for step in (0, 1, 2)
    ]
    for row in rows:
        row['delta'] *= row['step'] and row['name'] != 'still'
    found = coordinates.slopes(rows)
    assert found['steep'] == pytest.approx({1: 0.7, 2: 0.7})
    assert found['flat'] == pytest.approx({1: 0, 2: 0}, abs=1e-12)
    assert found['still'] == {1: 0, 2: 0}
    assert coordinates.judge(found)[:2] == ('steep', 1)
    assert set(coordinates.slopes(rows, ('flat',))) == {'flat'}


def test_what_is_not_finite_fails():
    verdict = coordinates.judge({'a': {1: 0.0}, 'b': {1: math.nan}})
    assert verdict.name == 'b'
    assert not verdict.passed


def test_all_fields_of_the_base_grow():
    found = coordinates.widened(a_config('cnn', 'mup'), (8, 16))
    assert [config.model.options['channels'] for config in found.values()] == [[8, 8], [16, 16]]
    assert [config.model.options['dense'] for config in found.values()] == [[8], [16]]
    assert list(coordinates.widened(a_config('resnet', 'mup'))) == [4, 8, 16, 32]


@pytest.mark.parametrize(
    ('widths', 'fields', 'message'),
    [
        ((128,), (), 'two sizes or more'),
        ((128, 150), (), 'expected a whole number at width 150'),
        ((128, 256), ('modle.width',), "no section 'modle'"),
    ],
)
def test_bad_sizes_are_refused(widths, fields, message):
    with pytest.raises(ConfigError, match=message):
        coordinates.widened(a_config('transformer', 'mup'), widths, fields)


def test_the_command(tmp_path, capsys):
    """It ends with 1 where the verdict is bad; and names what it measured."""
    file = tmp_path / 'config.py'
    file.write_text(
        'def get_config():\n'
        "    return {'model': {'name': 'mlp', 'widths': (16, 16)}, 'task': 'classification',\n"
        "            'data': 'wine', 'train': {'steps': 1, 'batch_size': 32},\n"
        "            'optimizer': {'learning_rate': 0.01},\n"
        "            'parametrization': {'name': 'sp', 'base': {'widths': (16, 16)}}}\n"
    )
    command = ['coord-check', f'--config={file}', '--widths=32,128', '--steps=1', '--seeds=1']
    assert cli.main([*command, f'--out={tmp_path}']) == 1
    assert 'NOT flat' in capsys.readouterr().out
    assert (tmp_path / 'coordinates.png').stat().st_size > 5000
    lines = (tmp_path / 'coordinates.csv').read_text().splitlines()
    assert lines[0] == 'size,seed,step,name,mean,delta'
    assert {line.split(',')[3] for line in lines[1:]} >= {'hidden_0', 'hidden_1', 'output'}
    assert np.isfinite([float(line.split(',')[5]) for line in lines[1:]]).all()
    assert cli.main([*command, '--steps=0']) == 78
    assert cli.main([*command[:2], '--depths=1,2']) == 78


@pytest.mark.slow
def test_completep_is_flat_in_depth_and_mup_is_not():
    """Of the last block and the read-out; the rate is the same at any depth."""
    options = {'width': 64, 'heads': 1, 'layers': 2, 'bias': False, 'tied': False}
    found = {}
    for name, depth in (('completep', {'base_depth': 2}), ('mup', {})):
        config = a_config(
            'transformer',
            name,
            model={'name': 'transformer', **options},
            optimizer={'name': 'adamw', 'learning_rate': 2**-10},
            parametrization={'name': name, 'base': {'width': 64}, **depth},
        )
        rows = coordinates.measure(coordinates.deepened(config, (2, 4, 8)), 4, 2, lambda _: None)
        found[name] = coordinates.slopes(rows, coordinates.STREAM)
    assert coordinates.judge(found['completep']).passed, found['completep']
    assert not coordinates.judge(found['mup']).passed
