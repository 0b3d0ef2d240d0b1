"""Every schedule at its corners and in between, against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.config import ScheduleConfig
from bigjax.durations import Horizon
from bigjax.errors import ConfigError
from bigjax.optim.schedules import SCHEDULES, build
from bigjax.schema import build as from_mapping

PEAK = 0.5
HORIZON = Horizon(batch_size=10, examples_per_epoch=200, tokens_per_example=5, total_steps=100)


def make(name: str, horizon: Horizon = HORIZON, **options):
    where = 'config.optimizer.schedule'
    config = from_mapping(ScheduleConfig, {'name': name, **options}, where)
    return build(config, PEAK, horizon)


def values(name: str, steps: list[int], **options) -> list[float]:
    """The schedule as a fraction of its peak."""
    schedule = jax.jit(make(name, **options))
    return [float(schedule(step)) / PEAK for step in steps]


@pytest.mark.parametrize(
    ('name', 'options', 'expected'),
    [
        ('constant', {}, {0: 1, 50: 1, 99: 1}),
        ('linear', {}, {0: 1, 25: 0.75, 100: 0, 120: 0}),
        ('linear', {'end': 0.2}, {0: 1, 50: 0.6, 100: 0.2}),
        ('cosine', {}, {0: 1, 25: 0.5 + math.sqrt(0.125), 50: 0.5, 100: 0, 120: 0}),
        ('cosine', {'end': 0.1}, {0: 1, 50: 0.55, 100: 0.1}),
        ('cosine', {'warmup': 20}, {0: 0, 10: 0.5, 20: 1, 60: 0.5, 100: 0}),
        ('exponential', {'every': 10, 'decay': 0.5}, {0: 1, 5: 0.5**0.5, 10: 0.5, 30: 0.125}),
        (
            'exponential',
            {'every': '1 epoch', 'decay': 0.1, 'staircase': True, 'end': 0.05},
            {0: 1, 19: 1, 20: 0.1, 39: 0.1, 40: 0.05},
        ),
        (
            'piecewise',
            {'boundaries': ['50%', 75], 'values': [0.1, 0.02], 'warmup': 10},
            {5: 0.5, 10: 1, 49: 1, 50: 0.1, 74: 0.1, 75: 0.02, 99: 0.02},
        ),
        ('inverse_square_root', {'warmup': 9}, {3: 1 / 3, 9: 1, 36: 0.5, 81: 1 / 3}),
        ('inverse_square_root', {'timescale': 20}, {0: 1, 60: 0.5}),
        (
            'one_cycle',
            {'rise': 40, 'start': 0.2, 'end': 0.1},
            {0: 0.2, 20: 0.6, 40: 1, 70: 0.55, 100: 0.1},
        ),
        ('one_cycle', {'shape': 'linear', 'start': 0.25}, {0: 0.25, 10: 0.5, 30: 1, 65: 0.5}),
        ('warmup_stable_decay', {'warmup': 10}, {5: 0.5, 10: 1, 80: 1, 90: 0.5, 100: 0}),
        ('warmup_stable_decay', {'shape': 'sqrt', 'decay': 64}, {36: 1, 52: 0.5, 100: 0}),
        ('warmup_stable_decay', {'shape': 'cosine', 'end': 0.5}, {80: 1, 90: 0.75, 100: 0.5}),
    ],
)
def test_closed_form(name, options, expected):
    found = values(name, list(expected), **options)
    np.testing.assert_allclose(found, list(expected.values()), atol=1e-6)


SMOOTH = {
    'linear': {},
    'cosine': {},
    'exponential': {'every': 20, 'decay': 0.5},
    'inverse_square_root': {},
    'one_cycle': {'rise': '40 steps'},
    'warmup_stable_decay': {},
}


@pytest.mark.parametrize('name', SMOOTH)
def test_no_jump_at_the_seams(name):
    found = np.array(values(name, list(range(101)), warmup=10, **SMOOTH[name]))
    assert found[0] == 0.0
    assert found.max() == pytest.approx(1.0)
    assert np.abs(np.diff(found)).max() < 0.12  # a warm-up's step is .1


@pytest.mark.parametrize(
    ('duration', 'steps'),
    [(40, 40), ('2 epochs', 40), ('400 examples', 40), ('2000 tokens', 40), ('40%', 40)],
)
def test_every_unit_of_duration(duration, steps):
    found = values('constant', [steps - 1, steps], warmup=duration)
    np.testing.assert_allclose(found, [(steps - 1) / steps, 1.0], rtol=1e-6)


def test_int_and_traced_steps_agree():
    for name in SCHEDULES:
        options = {'boundaries': [50], 'values': [0.1]} if name == 'piecewise' else SMOOTH.get(name)
        schedule = make(name, warmup=10, **(options or {}))
        traced = jax.jit(schedule)(jnp.asarray(60, jnp.int32))
        assert traced.shape == ()
        assert traced.dtype == jnp.float32
        np.testing.assert_allclose(traced, schedule(60), rtol=1e-6)


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('cosin', {}, "unknown config.optimizer.schedule.name 'cosin': did you mean 'cosine'"),
        ('cosine', {'ends': 0.1}, "schedule.ends .*did you mean 'end'"),
        ('cosine', {'end': 1.5}, 'schedule.end: expected a number >= 0 and <= 1, got 1.5'),
        ('cosine', {'warmup': '6 epochs'}, 'schedule.warmup: .* 100 steps, got 6 epochs = 120'),
        ('linear', {'warmup': 100}, 'schedule.warmup: .*got 100 steps'),
        ('exponential', {'decay': 0.5}, 'missing config.optimizer.schedule.every'),
        ('exponential', {'every': 0, 'decay': 0.5}, 'schedule.every: expected 1 to 100 steps'),
        ('one_cycle', {'rise': 95, 'warmup': 10}, 'schedule.rise: expected 1 to 90 steps'),
        ('warmup_stable_decay', {'decay': '200 steps'}, 'schedule.decay: expected 1 to 100'),
        ('piecewise', {'boundaries': [50, 20], 'values': [1, 1]}, 'increasing steps'),
        ('piecewise', {'boundaries': [120], 'values': [1]}, 'increasing steps'),
        ('piecewise', {'boundaries': [50], 'values': [1, 1]}, 'one value for each boundary'),
        ('inverse_square_root', {}, 'needs a warmup or a timescale'),
    ],
)
def test_bad_settings(name, options, message):
    with pytest.raises(ConfigError, match=message):
        make(name, **options)
