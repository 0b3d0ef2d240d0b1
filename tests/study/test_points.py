import math

import numpy as np
import pytest

from bigjax.errors import ConfigError
from bigjax.study.points import grid, log_uniform, sample, uniform, zipped


def test_grid_is_every_combination():
    points = grid({'a.b': [1, 2], 'seed': range(3)})
    assert len(points) == 6
    assert points[:2] == [{'a.b': 1, 'seed': 0}, {'a.b': 1, 'seed': 1}]
    assert {(point['a.b'], point['seed']) for point in points} == {
        (b, seed) for b in (1, 2) for seed in (0, 1, 2)
    }
    assert grid({}) == [{}]


def test_zipped_goes_in_step_and_refuses_what_does_not():
    assert zipped({'a': [1, 2], 'b': 'xy'}) == [{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'y'}]
    with pytest.raises(ConfigError, match=r"as many values of each key, got {'a': 2, 'b': 1}"):
        zipped({'a': [1, 2], 'b': [3]})


def test_sample_has_the_distribution_and_is_its_own_beginning():
    among = {'rate': log_uniform(1e-4, 1e-1), 'dropout': uniform(0.1, 0.3), 'width': [64, 128]}
    points = sample(2000, among)
    assert points[:10] == sample(10, among)
    assert points != sample(2000, among, seed=1)
    logs = np.log10([point['rate'] for point in points])
    dropout = np.array([point['dropout'] for point in points])
    assert -4 <= logs.min() <= logs.max() <= -1
    assert logs.mean() == pytest.approx(-2.5, abs=4 * 3 / math.sqrt(12 * 2000))
    assert dropout.mean() == pytest.approx(0.2, abs=4 * 0.2 / math.sqrt(12 * 2000))
    assert 0.1 <= dropout.min() <= dropout.max() <= 0.3
    wide = sum(point['width'] == 128 for point in points)
    assert abs(wide - 1000) < 4 * math.sqrt(500)
