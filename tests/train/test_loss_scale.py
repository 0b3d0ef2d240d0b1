import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.data import batches
from bigjax.errors import Diverged
from bigjax.train import loss_scale
from bigjax.train.build import build
from bigjax.train.loop import train
from bigjax.train.step import train_step
from bigjax.train.writers import read_metrics
from tests.train.tiny import blobs, tiny_config


def steps(count, scale=None, **values):
    """The states of a run from its first on, and what its steps logged; scale: the first one."""
    splits = blobs()
    run = build(tiny_config(**values), splits)
    step = jax.jit(partial(train_step, run.recipe))
    states, logged = [run.init()], []
    if scale is not None:
        first = dataclasses.replace(loss_scale.first(), scale=jnp.float32(scale))
        states = [dataclasses.replace(states[0], loss_scale=first)]
    for index in range(count):
        batch = batches.train_batch(splits.sources['train'], 0, index, 16, slice(0, 16))
        state, found = step(states[-1], batch)
        states.append(state)
        logged.append({name: value for name, value in found.items() if name != 'metrics'})
    return jax.device_get((states, logged))


def test_a_scale_changes_nothing_but_what_overflows():
    values = {'optimizer.ema': 0.9, 'train.accumulation': 2, 'task.l2': 0.1}
    (*_, plain), (_, told) = steps(2, **values)
    (*_, scaled), (_, said) = steps(2, scale=2.0**10, **values)
    assert said['loss'] == pytest.approx(told['loss'], rel=1e-6)
    assert said['grad_norm'] == pytest.approx(told['grad_norm'], rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        (plain.params, plain.optimizer, plain.ema),
        (scaled.params, scaled.optimizer, scaled.ema),
    )


def test_an_overflow_costs_its_step_and_half_the_scale():
    values = {'optimizer.ema': 0.9, 'model.norm': 'batch', 'precision.compute': 'float16'}
    states, logged = steps(5, scale=2.0**30, **values, **{'precision.growth_steps': 2})
    scales = [30, *np.log2([found['loss_scale'] for found in logged]).astype(int)]
    overflowed = [not np.isfinite(found['grad_norm']) for found in logged]
    assert overflowed[0]
    assert states[5].guard.skipped == sum(overflowed) == logged[-1]['skipped_steps']
    for before, after, skipped in zip(states, states[1:], overflowed, strict=False):
        assert after.step == before.step + 1
        same = [
            np.array_equal(old, new)
            for old, new in zip(
                jax.tree.leaves((before.params, before.collections, before.optimizer, before.ema)),
                jax.tree.leaves((after.params, after.collections, after.optimizer, after.ema)),
                strict=True,
            )
        ]
        assert all(same) if skipped else not any(same)
    falls = [new - old for old, new in itertools.pairwise(scales)]
    assert all((fall == -1) == skipped for fall, skipped in zip(falls, overflowed, strict=True))


def test_the_scale_doubles_after_so_many_good_steps():
    _, logged = steps(5, scale=64.0, **{'precision.growth_steps': 2})
    assert [found['loss_scale'] for found in logged] == [64, 128, 128, 256, 256]


def test_gradients_that_float16_would_lose_are_kept():
    """Scaled down they fall below 2^-24, the least that float16 knows."""
    values = {'optimizer': {'name': 'sgd', 'learning_rate': 1.0}, 'model.widths': (16, 16, 16)}
    half = values | {'precision.compute': 'float16'}

    def kernel_of(scale, values):
        (first, second), _ = steps(1, scale, **values)
        moved = jax.tree.map(np.subtract, second.params, first.params)
        return moved['hidden_0']['dense']['kernel']

    exact = kernel_of(None, values)
    errors = [
        np.linalg.norm(kernel_of(scale, half) - exact) / np.linalg.norm(exact)
        for scale in (2.0**-22, 2.0**8)
    ]
    assert errors[0] > 0.1 > 0.01 > errors[1]


def test_a_run_goes_on_past_overflows_and_ends_when_no_scale_helps(tmp_path, monkeypatch):
    config = tiny_config(**{'precision.compute': 'float16', 'checkpoint.every': 1})
    monkeypatch.setattr(loss_scale, 'FIRST', 2.0**60)
    train(config, tmp_path / 'past')
    rows = [row for row in read_metrics(tmp_path / 'past') if 'train/loss' in row]
    assert [row['train/skipped_steps'] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]['train/loss_scale'] == 2.0**54
    assert 'train/grad_norm' not in rows[0] or not np.isfinite(float(rows[0]['train/grad_norm']))
    monkeypatch.setattr(loss_scale, 'FIRST', 2.0**-13)
    wild = {'optimizer.name': 'sgd', 'optimizer.learning_rate': 1e30, 'precision.growth_steps': 99}
    with pytest.raises(Diverged):
        train(tiny_config(**wild, **{'precision.compute': 'float16'}), tmp_path / 'ended')
