"""Each benchmark runs, at a size that measures nothing, and prints its table."""

import importlib

import pytest


@pytest.mark.parametrize(
    ('name', 'row'),
    [
        ('overhead', 'MLP 128-64'),
        ('fits', 'bootstrap samples'),
        ('guards', 'one row'),
        ('import_weights', 'golden llama'),
        ('input_pipeline', 'csv'),
        ('tokenising', 'characters'),
        ('torch_parity', 'PyTorch eager'),
        pytest.param('startup', 'digits_cnn', marks=pytest.mark.slow),
    ],
)
def test_benchmark_prints_its_table(name, row, capsys):
    if name == 'torch_parity':
        pytest.importorskip('torch')
    importlib.import_module(f'benchmarks.{name}').main(['--smoke'])
    table = capsys.readouterr().out
    assert row in table
    assert 'nan' not in table
