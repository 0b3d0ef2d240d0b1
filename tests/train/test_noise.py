"""The gradient noise scale of a run, against the gradients of single examples in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import config as configs
from bigjax.analysis.noise_scale import from_examples, from_two_sizes
from bigjax.data import batches
from bigjax.errors import ConfigError
from bigjax.sharding.mesh import replicated
from bigjax.train import noise
from bigjax.train.build import build
from bigjax.train.loop import train
from bigjax.train.step import train_step
from bigjax.train.writers import read_metrics
from tests.train.tiny import BASE, blobs, sentences, tiny_config

ROWS, PARTS = 16, 8
MEASURED = {
    'train.accumulation': PARTS,
    'train.noise_scale': 1,
    'optimizer.name': 'sgd',
    'mesh.data': 1,
    'mesh.tensor': 8,
}


def one_step(splits, **values):
    run = build(tiny_config(**{**MEASURED, **values}), splits)
    batch = batches.train_batch(splits.sources['train'], 0, 0, ROWS, slice(0, ROWS))
    with jax.set_mesh(run.mesh):
        step = jax.jit(
            partial(train_step, run.recipe),
            out_shardings=(run.shardings, replicated(run.mesh)),
        )
        state = run.init()
        after, logged = step(state, batches.to_device(batch, run.batch_sharding, ROWS))
    return jax.device_get((state.params, batch, after.noise, logged))


def row_gradients(params, batch):
    """[ROWS, P] in float64: of the default MLP's cross-entropy of each row."""

    def loss(params, row, target):
        for name in ('hidden_0', 'hidden_1', 'read_out'):
            dense = params[name].get('dense', params[name])
            row = row @ dense['kernel'] + dense['bias']
            row = row if name == 'read_out' else jnp.maximum(row, 0)
        return -jax.nn.log_softmax(row)[target]

    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        grads = jax.vmap(jax.grad(loss), (None, 0, 0))(
            params, jnp.asarray(batch['inputs'], jnp.float64), batch['targets']
        )
        return np.concatenate([np.asarray(x).reshape(ROWS, -1) for x in jax.tree.leaves(grads)], 1)


def oracle(params, batch, penalty=0.0):
    """tr S and |G|^2 by the variance between the microbatches of `train.step`, which take every
    PARTS-th row, of weighted rows: a weighted analysis of variance in float64."""
    grads, weights = row_gradients(params, batch), np.float64(batch['weights'])
    sums = [weights[j::PARTS] @ grads[j::PARTS] for j in range(PARTS)]
    sizes = np.array([weights[j::PARTS].sum() for j in range(PARTS)])
    sums, sizes = np.array(sums)[sizes > 0], sizes[sizes > 0]
    mean = sums.sum(0) / sizes.sum()
    between = sum(n * np.sum((s / n - mean) ** 2) for s, n in zip(sums, sizes, strict=True))
    trace = between / (len(sizes) - 1)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    return trace, np.sum((mean + penalty * flat) ** 2) - trace / sizes.sum()


@pytest.mark.parametrize(
    'mesh',
    [(1, 1, 8), (2, 1, 4), (1, 2, 4), (2, 1, 1)],
    ids=['tensor', 'data+tensor', 'fsdp+tensor', 'data'],
)
def test_one_measurement_on_any_mesh(mesh, monkeypatch):
    names = dict(zip(('mesh.data', 'mesh.fsdp', 'mesh.tensor'), mesh, strict=True))
    devices = jax.devices()[: np.prod(mesh)]
    monkeypatch.setattr('bigjax.sharding.mesh.jax.devices', lambda: devices)
    params, batch, averages, logged = one_step(blobs(), **names)
    trace, square = oracle(params, batch)
    assert averages.trace == pytest.approx(trace, rel=1e-4)
    assert averages.square == pytest.approx(square, rel=1e-4)
    assert logged['noise_scale'] == pytest.approx(trace / square, rel=1e-4)
    assert averages.seen == 1


def test_weights_penalties_and_empty_microbatches():
    splits = blobs(rows=ROWS)
    weights = np.linspace(0.5, 2, ROWS, dtype=np.float32)
    order = batches.train_indices(ROWS, 0, 0, ROWS)
    weights[order[3::PARTS]] = 0  # a microbatch of padding
    splits.sources['train'].arrays['weights'] = weights
    params, batch, averages, _ = one_step(splits, **{'task.l2': 0.3})
    trace, square = oracle(params, batch, penalty=0.3)
    assert averages.trace == pytest.approx(trace, rel=1e-4)
    assert averages.square == pytest.approx(square, rel=1e-4)


def test_the_loss_scale_cancels():
    *_, plain = one_step(blobs())
    *_, scaled = one_step(blobs(), **{'precision.compute': 'float16'})
    assert scaled['noise_trace'] == pytest.approx(plain['noise_trace'], rel=0.02)
    assert scaled['noise_square'] == pytest.approx(plain['noise_square'], rel=0.02)


def test_estimates_are_unbiased():
    """Over many batches they average to the truth of the population they are drawn from."""
    rng = np.random.default_rng(0)
    mean, spread = rng.normal(size=20), rng.uniform(0.5, 3, size=20)
    found = []
    for _ in range(4000):
        grads = mean + spread * rng.normal(size=(12, 20))
        parts = grads.reshape(4, 3, 20).mean(1)
        small, large = np.mean(np.sum(parts**2, 1)), np.sum(grads.mean(0) ** 2)
        found.append(from_two_sizes(3, 12, small, large))
    trace, square = np.mean(found, 0)
    assert trace == pytest.approx(np.sum(spread**2), rel=0.02)
    assert square == pytest.approx(np.sum(mean**2), rel=0.02)


def test_of_examples_against_the_covariance():
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(50, 4)), rng.normal(size=50), rng.normal(size=4)

    def loss(w, example):
        return (example['x'] @ w - example['y']) ** 2 / 2

    examples = jax.tree.map(jnp.float32, {'x': x, 'y': y})
    found = from_examples(loss, jnp.float32(w), examples)
    grads = (x @ w - y)[:, None] * x
    trace = np.trace(np.cov(grads.T))
    assert found.trace == pytest.approx(trace, rel=1e-4)
    assert found.square == pytest.approx(np.sum(grads.mean(0) ** 2) - trace / 50, rel=1e-4)


def test_averages_move_by_a_fiftieth_and_skip_what_is_not_finite():
    grads, yes = {'w': jnp.ones(1)}, jnp.bool(True)
    averages, traces = noise.first(), []
    for step in range(60):
        parts = noise.Parts(jnp.float32(8.0 + step), jnp.float32(2), jnp.float32(4))
        averages = noise.after_step(averages, yes, parts, grads, jnp.float32(1))
        traces.append((((8.0 + step) / 4) - 1) / (1 / 2 - 1 / 4))
    expected = np.mean(traces[:50])
    for trace in traces[50:]:
        expected += 0.02 * (trace - expected)
    assert averages.trace == pytest.approx(expected, rel=1e-5)
    parts = noise.Parts(jnp.float32(jnp.inf), jnp.float32(2), jnp.float32(4))
    held = noise.after_step(averages, yes, parts, grads, jnp.float32(1))
    assert held == averages


def test_a_run_logs_it_and_goes_on_with_its_averages(tmp_path):
    values = {**MEASURED, 'train.noise_scale': 2, 'mesh.data': None, 'mesh.tensor': None}
    values |= {'train.accumulation': 2}
    config = configs.with_values(configs.resolve(BASE), **values)
    train(config, tmp_path / 'run')
    rows = [row for row in read_metrics(tmp_path / 'run') if 'train/noise_scale' in row]
    assert [row['step'] for row in rows] == [1, 2, 3, 4, 5, 6]
    traces = [row['train/noise_trace'] for row in rows]
    assert traces[0] == traces[1] != traces[2] == traces[3] != traces[4] == traces[5]
    for row in rows:
        ratio = row['train/noise_trace'] / row['train/noise_square']
        assert row['train/noise_scale'] == pytest.approx(ratio, rel=1e-5)


def test_off_it_is_not_in_the_step():
    run = build(tiny_config(**{**MEASURED, 'train.noise_scale': 0}), blobs())
    assert run.abstract.noise is None
    *_, averages, logged = one_step(blobs(), **{'train.noise_scale': 0})
    assert averages is None
    assert 'noise_scale' not in logged


def test_text_is_counted_in_tokens():
    decoder = {'name': 'transformer', 'layers': 1, 'width': 16, 'heads': 2}
    values = {'model': decoder, 'task': {'name': 'language_model'}, 'train.accumulation': 2}
    values |= {'mesh.tensor': 2, 'mesh.data': 4}
    *_, logged = one_step(sentences(), **values)
    # |g|^2 of all B tokens is |G|^2 + tr S / B, by the definition of both
    whole = logged['noise_square'] + logged['noise_trace'] / (ROWS * 12)
    assert whole == pytest.approx(logged['grad_norm'] ** 2, rel=1e-4)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ConfigError, match=r'expected train\.accumulation of 2 or more, got 1'):
        tiny_config(**{'train.noise_scale': 10})
    with pytest.raises(ConfigError, match='at least one step of 6, got 1%'):
        build(tiny_config(**{**MEASURED, 'train.noise_scale': '1%'}), blobs())
