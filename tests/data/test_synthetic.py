"""Made-up rows: functions of the index, with the distribution that they claim."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import NearestCentroid

from bigjax import schema
from bigjax.config import DataConfig
from bigjax.data import synthetic
from bigjax.data.core import everything
from bigjax.data.load import load

KINDS = ('blobs', 'regression', 'images', 'tokens')


def source(**options):
    config = schema.build(synthetic.Config, options, 'config.data')
    return synthetic.load(config).sources['train']


@pytest.mark.parametrize('kind', KINDS)
def test_rows_are_functions_of_the_index(kind):
    rows = everything(source(kind=kind, examples=50))
    some = source(kind=kind, examples=10**12)[np.array([7, 3, 7])]
    other_seed = source(kind=kind, seed=1)[np.array([7, 3, 7])]
    for name in rows:
        np.testing.assert_array_equal(some[name], rows[name][[7, 3, 7]])
    assert not np.array_equal(some['inputs'], other_seed['inputs'])
    assert not np.array_equal(some['inputs'][0], some['inputs'][1])


@pytest.mark.parametrize('kind', KINDS)
def test_rows_are_as_the_spec_says(kind):
    splits = load(schema.build(DataConfig, {'name': 'synthetic', 'kind': kind}, 'config.data'))
    assert {name: len(rows) for name, rows in splits.sources.items()} == {
        'train': 800,
        'val': 100,
        'test': 100,
    }
    assert splits.spec.num_classes == (4 if kind in ('blobs', 'images') else None)
    assert splits.spec.vocab_size == (64 if kind == 'tokens' else None)


def test_random_numbers_are_standard_normal_and_uncorrelated():
    numbers = synthetic.normal(5, np.arange(20_000), 5)
    np.testing.assert_allclose(numbers.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(np.cov(numbers.T), np.eye(5), atol=0.03)
    np.testing.assert_allclose((numbers**4).mean(axis=0), 3, atol=0.3)
    lagged = np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]
    assert abs(lagged) < 0.03


@pytest.mark.parametrize('kind', ['blobs', 'images'])
def test_classes_can_be_told_apart(kind):
    rows = everything(source(kind=kind, examples=200, image_size=8, channels=3))
    inputs = rows['inputs'].reshape(200, -1).astype(float)
    model = NearestCentroid().fit(inputs[:100], rows['targets'][:100])
    assert model.score(inputs[100:], rows['targets'][100:]) > 0.9


def test_regression_is_linear_with_the_noise_that_was_asked_for():
    rows = everything(source(kind='regression', examples=4000, noise=0.5))
    model = LinearRegression().fit(rows['inputs'], rows['targets'])
    residuals = rows['targets'] - model.predict(rows['inputs'])
    np.testing.assert_allclose(residuals.std(), 0.5, rtol=0.05)
    np.testing.assert_allclose(np.linalg.norm(model.coef_), 1, rtol=0.05)


def test_each_token_follows_from_the_one_before_up_to_one_bit():
    rows = everything(source(kind='tokens', examples=500, vocab_size=11))
    np.testing.assert_array_equal(rows['inputs'][:, 1:], rows['targets'][:, :-1])
    steps = (rows['targets'] - rows['inputs']) % 11
    assert set(np.unique(steps)) == {1, 2}
    assert abs((steps == 1).mean() - 0.5) < 0.02
    assert len(np.unique(rows['inputs'][:, 0])) == 11
