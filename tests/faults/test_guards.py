"""Rows 19, 20, 21, 25, 27: batches that poison a run, a replica that is not what it should be, and
a sink that raises."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bigjax.config import MeshConfig
from bigjax.data import batches
from bigjax.errors import Diverged
from bigjax.sharding.mesh import make_mesh
from bigjax.train import checkpoint, guard, loop, replicas, writers
from bigjax.train.build import build
from bigjax.train.step import train_step
from bigjax.train.writers import read_events, read_metrics
from tests.faults.runs import good, numbers
from tests.train.tiny import blobs, tiny_config

EMA = {'optimizer.ema': 0.9, 'model.norm': 'batch', 'checkpoint.every': 1, 'checkpoint.keep': 9}


def poison(monkeypatch, harm):
    """`harm(step)` is what the inputs of that step (from 1) are multiplied by."""
    whole = batches.train_batch

    def train_batch(source, seed, step, size, rows):
        batch = whole(source, seed, step, size, rows)
        return {**batch, 'inputs': batch['inputs'] * np.float32(harm(step + 1))}

    monkeypatch.setattr(batches, 'train_batch', train_batch)


def state_at(workdir, config, step):
    with checkpoint.open_checkpoints(workdir, config.checkpoint) as checkpoints:
        state = checkpoint.restore(checkpoints, step, build(config).abstract)
    return jax.device_get((state.params, state.collections, state.optimizer, state.ema))


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def bad_steps(workdir):
    return [row for row in read_events(workdir) if row['event'] == 'bad_step']


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_row_19_one_batch_that_is_not_finite_changes_nothing(tmp_path, monkeypatch, value):
    config = tiny_config(**EMA)
    poison(monkeypatch, lambda step: value if step == 4 else 1)
    loop.train(config, tmp_path)
    before, after = (state_at(tmp_path, config, step) for step in (3, 5))
    with pytest.raises(AssertionError):
        assert_equal(before, after)
    rows = {row['step']: row for row in read_metrics(tmp_path) if 'train/loss' in row}
    assert [rows[step]['train/skipped_steps'] for step in range(1, 7)] == [0, 0, 0, 1, 1, 1]
    (event,) = bad_steps(tmp_path)
    assert event['step'] == 4
    assert event['details']['why'] == 'not finite'
    size, count = config.train.batch_size, len(build(config).splits.sources['train'])
    expected = batches.train_indices(count, config.seed, 3 * size, size).tolist()
    assert event['details']['rows'] == expected
    # as it was: what the fifth step made of it is what it makes of the state of the third
    monkeypatch.undo()
    run = build(config)
    with (
        jax.set_mesh(run.mesh),
        checkpoint.open_checkpoints(tmp_path, config.checkpoint) as checkpoints,
    ):
        third = checkpoint.restore(checkpoints, 3, run.abstract)
        third = dataclasses.replace(third, step=third.step + 1)
        batch = batches.train_batch(run.splits.sources['train'], 0, 4, size, slice(0, size))
        fifth, _ = run.jitted_step()(third, jax.device_put(batch, run.batch_sharding))
    assert_equal(
        jax.device_get((fifth.params, fifth.collections, fifth.optimizer, fifth.ema)), after
    )


def test_row_20_nan_again_and_again_ends_before_any_is_applied(tmp_path, monkeypatch):
    config = tiny_config(**EMA | {'train.steps': 40, 'train.log_every': 40})
    poison(monkeypatch, lambda step: np.nan if step > 4 else 1)
    with pytest.raises(Diverged, match=r'step 7, .* is nan.*3 updates in a row.*is of 4') as e:
        loop.train(config, tmp_path)
    assert e.value.exit_code == 70
    bad = bad_steps(tmp_path)
    assert [row['step'] for row in bad] == [5, 6, 7]
    rows = ', '.join(map(str, bad[-1]['details']['rows'][:8]))
    assert str(e.value).startswith(f'step 7, on rows {rows}, ... of train: ')
    assert good(tmp_path, config) == 4
    leaves = jax.tree.leaves(state_at(tmp_path, config, 4))
    assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_row_20_the_step_itself_refuses_once_the_budget_is_spent():
    splits = blobs()
    run = build(tiny_config(**{'guard.budget': 2}), splits)
    step, state = jax.jit(partial(train_step, run.recipe)), run.init()
    seen = []
    for index, harm in enumerate([1, np.nan, 1, np.nan, np.nan, 1, 1]):
        batch = batches.train_batch(splits.sources['train'], 0, index, 16, slice(0, 16))
        batch = {**batch, 'inputs': batch['inputs'] * np.float32(harm)}
        state, logged = step(state, batch)
        seen.append((int(logged['in_row']), guard.VERDICTS[int(logged['verdict'])]))
    bad, late = guard.NONFINITE, guard.LATE
    assert seen == [(0, None), (1, bad), (0, None), (1, bad), (2, bad), (3, late), (4, late)]


LONG = {'train.steps': 64, 'eval.every': 64, 'checkpoint.every': 20, 'checkpoint.keep': 9}


@pytest.mark.parametrize('policy', ['log', 'skip', 'roll_back'])
def test_row_21_a_loss_spike(tmp_path, monkeypatch, policy):
    config = tiny_config(**LONG | {'guard.spike': policy})
    poison(monkeypatch, lambda step: -1e3 if step == 57 else 1)
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    loop.train(config, whole)
    (event,) = bad_steps(whole)
    assert (event['step'], event['details']['why']) == (57, 'spike')
    assert len(event['details']['rows']) == config.train.batch_size
    losses = {row['step']: row['train/loss'] for row in read_metrics(whole) if 'train/loss' in row}
    usual = np.mean([losses[step] for step in range(40, 57)])
    assert losses[57] > 10 * usual
    rolled = [row for row in read_events(whole) if row['event'] == 'roll_back']
    skipped = [row['train/skipped_steps'] for row in read_metrics(whole) if 'train/loss' in row]
    assert skipped[55:58] == ([0, 0, 0] if policy == 'log' else [0, 1, 1])
    if policy == 'log':
        assert not rolled
    if policy == 'skip':
        assert losses[58] < 2 * usual
        assert not rolled
    if policy == 'roll_back':
        assert [(row['step'], row['details']['to']) for row in rolled] == [(57, 40)]
        # the next step is one from the weights of step 40
        run, size = build(config), config.train.batch_size
        with (
            jax.set_mesh(run.mesh),
            checkpoint.open_checkpoints(whole, config.checkpoint) as checkpoints,
        ):
            state = checkpoint.restore(checkpoints, 40, run.abstract)
            state = dataclasses.replace(state, step=state.step + 17)
            batch = batches.train_batch(run.splits.sources['train'], 0, 57, size, slice(0, size))
            _, logged = run.jitted_step()(state, jax.device_put(batch, run.batch_sharding))
        assert losses[58] == float(logged['loss'])
    # killed at step 60, before anything after the spike was saved: the same again
    save = checkpoint.save

    def refuse(checkpoints, step, *rest):
        if step == 60:
            raise KeyboardInterrupt
        save(checkpoints, step, *rest)

    monkeypatch.setattr(checkpoint, 'save', refuse)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, stopped)
    monkeypatch.setattr(checkpoint, 'save', save)
    loop.train(config, stopped)
    assert json.dumps(numbers(stopped)) == json.dumps(numbers(whole))


@pytest.mark.parametrize('sizes', [{'data': 8}, {'data': 4, 'tensor': 2}])
def test_row_25_a_replica_that_differs_is_named(sizes):
    config = tiny_config(**{f'mesh.{axis}': size for axis, size in sizes.items()})
    run = build(config, blobs())
    params = run.init().params
    compare = replicas.comparer(run.mesh, run.abstract.params)
    assert compare(params) == []
    leaf = params['hidden_0']['dense']['kernel']
    parts = [np.array(shard.data) for shard in leaf.addressable_shards]
    parts[5].view(np.uint32).flat[7] ^= 1  # the lowest bit of one weight
    arrays = [
        jax.device_put(p, s.device) for p, s in zip(parts, leaf.addressable_shards, strict=True)
    ]
    params['hidden_0']['dense']['kernel'] = jax.make_array_from_single_device_arrays(
        leaf.shape, leaf.sharding, arrays
    )
    (line,) = compare(params)
    odd = leaf.addressable_shards[5].device.id
    assert line.startswith(f'hidden_0/dense/kernel: device {odd} (process 0) differs from device ')


@pytest.mark.parametrize(('sizes', 'programs'), [({'fsdp': 8}, 0), ({'data': 2, 'fsdp': 4}, 1)])
def test_row_25_only_what_has_copies_is_read(sizes, programs, compilations):
    """Hashes cost: of kernels that are whole over their devices there are none."""
    mesh = make_mesh(MeshConfig(**sizes))
    params = {'kernel': jax.device_put(np.zeros((8, 3)), NamedSharding(mesh, P('fsdp')))}
    assert replicas.comparer(mesh, params)(params) == []
    assert compilations('hashes') == programs


def test_row_25_a_run_ends_before_it_saves_what_differs(tmp_path, monkeypatch):
    config = tiny_config(**{'guard.replicas': 2, 'checkpoint.every': 4})
    found = iter([[], ['w: device 3']])
    monkeypatch.setattr(replicas, 'comparer', lambda *_: lambda params: next(found))
    with pytest.raises(Diverged, match='step 4: silent data corruption: w: device 3'):
        loop.train(config, tmp_path)
    assert good(tmp_path, config) is None


def test_row_27_a_metrics_sink_raises(tmp_path, monkeypatch, config, whole):
    def fail(step, values):
        raise ConnectionError('gone')

    sink = writers.Sink(fail, lambda: None)
    monkeypatch.setitem(writers.SINKS, 'tensorboard', lambda *_: sink)
    loop.train(dataclasses.replace(config, sinks=('tensorboard',)), tmp_path)
    assert numbers(tmp_path) == numbers(whole)
    (event,) = (row for row in read_events(tmp_path) if row['event'] == 'sink_failed')
    assert 'gone' in event['details']['error']
