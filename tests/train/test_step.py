import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.data import batches
from bigjax.errors import ConfigError
from bigjax.train.build import build
from bigjax.train.step import eval_step, train_step
from tests.train.tiny import blobs, sentences, tiny_config

SGD = {'optimizer.name': 'sgd', 'optimizer.learning_rate': 0.1}


def one_step(splits, **values):
    run = build(tiny_config(**{**SGD, **values}), splits)
    batch = batches.train_batch(splits.sources['train'], 0, 0, 16, slice(0, 16))
    state = run.init()
    after, logged = jax.jit(partial(train_step, run.recipe))(state, batch)
    return run, state, batch, after, jax.device_get(logged)


def oracle_loss(params, inputs, targets):
    """The default MLP of `tiny_config` and its mean cross-entropy, in float64 numpy."""
    x = np.asarray(inputs, np.float64)
    hidden = [params[name]['dense'] for name in sorted(params) if name != 'read_out']
    for layer in [*hidden, params['read_out']]:
        x = x @ np.asarray(layer['kernel'], np.float64) + np.asarray(layer['bias'])
        if layer is not params['read_out']:
            x = np.maximum(x, 0)
    x = x - x.max(-1, keepdims=True)
    log_chances = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return -log_chances[np.arange(len(targets)), targets].mean()


def test_one_step_of_gradient_descent_against_finite_differences():
    _, before, batch, after, logged = one_step(blobs())
    params = jax.tree.map(np.asarray, before.params)
    loss = partial(oracle_loss, inputs=batch['inputs'], targets=batch['targets'])
    assert logged['loss'] == pytest.approx(loss(params), rel=1e-5)
    moved = jax.tree.map(lambda old, new: np.asarray(old - new) / 0.1, before.params, after.params)
    for path, leaf in jax.tree.leaves_with_path(params):
        index = np.unravel_index(np.argmax(np.abs(_at(moved, path))), leaf.shape)
        slope = _difference_quotient(loss, params, path, index)
        assert _at(moved, path)[index] == pytest.approx(slope, rel=1e-3, abs=1e-6)


def _at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def _difference_quotient(loss, params, path, index, h=1e-4):
    values = []
    for shift in (h, -h):
        moved = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
        _at(moved, path)[index] += shift
        values.append(loss(moved))
    return (values[0] - values[1]) / (2 * h)


@pytest.mark.parametrize('accumulation', [2, 4])
def test_accumulation_equals_the_large_batch(accumulation):
    splits = blobs(rows=16)
    splits.sources['train'].arrays['weights'] = np.linspace(0, 1, 16, dtype=np.float32)
    mesh = {'mesh.data': 1, 'mesh.tensor': 8}
    *_, whole, logged = one_step(splits, **mesh)
    *_, parts, logged_parts = one_step(splits, **{**mesh, 'train.accumulation': accumulation})
    assert logged_parts['loss'] == pytest.approx(logged['loss'], rel=1e-6)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, logged_parts['metrics'], logged['metrics'])
    jax.tree.map(close, parts.params, whole.params)


def test_rows_of_weight_zero_change_nothing():
    splits = blobs(rows=16)
    weights = np.ones(16, np.float32)
    weights[5:] = 0
    arrays = splits.sources['train'].arrays
    arrays['weights'] = weights
    order = batches.train_indices(16, 0, 0, 16)
    *_, first, logged = one_step(splits)
    arrays['inputs'][order[weights[order] == 0]] = np.nan
    arrays['inputs'] = np.where(weights[:, None] > 0, arrays['inputs'], 1e3).astype(np.float32)
    *_, second, logged_again = one_step(splits)
    assert logged['loss'] == logged_again['loss']
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


@pytest.mark.parametrize(('penalty', 'slope'), [('l1', np.sign), ('l2', lambda w: w)])
def test_penalties_pull_on_every_weight(penalty, slope):
    *_, plain, logged = one_step(blobs())
    _, before, _, pulled, with_penalty = one_step(blobs(), **{f'task.{penalty}': 0.5})
    assert with_penalty['loss'] > logged['loss']

    def check(start, free, held):
        expected = np.asarray(free) - 0.1 * 0.5 * slope(np.asarray(start))
        np.testing.assert_allclose(held, expected, atol=2e-6)

    jax.tree.map(check, before.params, plain.params, pulled.params)


def test_ema_follows_the_parameters():
    run, before, _, after, _ = one_step(blobs(), **{'optimizer.ema': 0.9})
    jax.tree.map(
        lambda old, new, ema: np.testing.assert_allclose(ema, 0.9 * old + 0.1 * new, atol=1e-6),
        before.params,
        after.params,
        after.ema,
    )
    assert after.eval_variables['params'] is after.ema
    assert run.abstract.ema is not None


def test_dropout_differs_from_step_to_step_and_repeats_with_the_seed():
    run, state, batch, _, _ = one_step(blobs(), **{'model.dropout': 0.5})
    step = jax.jit(partial(train_step, run.recipe))
    later = dataclasses.replace(state, step=state.step + 1)
    first, again, second = (step(s, batch)[1]['loss'] for s in (state, state, later))
    assert first == again != second


def test_evaluation_leaves_padding_out():
    run, state, batch, _, _ = one_step(blobs())
    groups = run.recipe.task.metrics(('accuracy',))
    step = jax.jit(partial(eval_step, run.recipe, groups))
    padded = {**batch, 'weights': batch['weights'].copy()}
    padded['weights'][8:] = 0
    padded['inputs'] = batch['inputs'].copy()
    padded['inputs'][8:] = np.nan
    half = {key: value[:8] for key, value in batch.items()}
    with_padding = jax.device_get(step(state.eval_variables, padded))
    without = jax.device_get(step(state.eval_variables, half))
    assert with_padding['weight'] == without['weight'] == 8
    assert with_padding['loss'] == pytest.approx(without['loss'], rel=1e-6)


def test_unknown_metrics_and_small_splits_are_refused_before_compiling():
    with pytest.raises(ConfigError, match=r"no metric 'acuracy'.*accuracy"):
        build(tiny_config(**{'eval.metrics': ('acuracy',)}), blobs())
    with pytest.raises(Exception, match='train split has 8 rows, fewer than'):
        build(tiny_config(), blobs(rows=8))


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_sixteen_bits_compute_nearly_what_float32_does(dtype):
    decoder = {'name': 'transformer', 'layers': 1, 'width': 16, 'heads': 2}
    values = {'model': decoder, 'task': {'name': 'language_model'}}
    _, _, _, _, told = one_step(sentences(), **values)
    _, _, _, near, said = one_step(sentences(), **values, **{'precision.compute': dtype})
    assert said['loss'] == pytest.approx(told['loss'], rel=2e-3)
    assert said['grad_norm'] == pytest.approx(told['grad_norm'], rel=2e-2)
    assert said['loss'] != told['loss']
    assert {leaf.dtype for leaf in jax.tree.leaves(near.params)} == {jnp.dtype('float32')}


def test_state_is_float32_under_bfloat16_compute():
    run = build(tiny_config(**{'precision.compute': 'bfloat16'}), blobs())
    floats = [
        leaf for leaf in jax.tree.leaves(run.abstract) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype('float32')}
