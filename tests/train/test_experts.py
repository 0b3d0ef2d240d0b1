"""Mixtures of experts in the training step: their losses, metrics and meshes."""

from functools import partial

import jax
import numpy as np
import pytest

from bigjax.data import batches
from bigjax.errors import Preempted
from bigjax.train.build import build
from bigjax.train.loop import train
from bigjax.train.step import eval_step, train_step
from tests.train import test_loop
from tests.train.test_meshes import losses, one_device
from tests.train.tiny import sentences, splits_of, tiny_config

MODEL = {'name': 'transformer', 'layers': 2, 'width': 16, 'heads': 4, 'mlp': 32, 'experts': 4}


def config_of(**values):
    settings = {'task': {'name': 'language_model'}, 'mesh': {'expert': 2}}
    return tiny_config(**{'model': MODEL, **settings, **values})


def one_step(config, splits):
    run = build(config, splits)
    batch = batches.train_batch(splits.sources['train'], 0, 0, 16, slice(0, 16))
    state = run.init()
    after, logged = jax.jit(partial(train_step, run.recipe))(state, batch)
    return run, batch, state, after, jax.device_get(logged)


@pytest.mark.parametrize('scan', [True, False])
def test_training_adds_the_routers_losses_and_evaluation_does_not(scan):
    weights = {'load_balance': 0.3, 'router_z': 0.2, 'scan': scan, 'remat': 'full'}
    config = config_of(model={**MODEL, **weights})
    run, batch, state, after, logged = one_step(config, sentences())
    sums = eval_step(run.recipe, {}, state.eval_variables, batch)
    more = 0.3 * logged['router_balance'] + 0.2 * logged['router_z']
    want = float(sums['loss'] / sums['weight']) + more
    assert logged['loss'] == pytest.approx(want, rel=1e-5)
    assert logged['router_balance'] >= 1
    assert 1 <= logged['router_load'] <= 2
    assert 0 <= logged['router_dropped'] < 0.5
    assert 0 < logged['router_entropy'] <= np.log(4) + 1e-6
    assert state.collections == after.collections == {}


def test_accumulation_changes_nothing():
    found = []
    for count in (1, 2):
        config = config_of(**{'train.accumulation': count, 'optimizer.name': 'sgd'})
        *_, after, logged = one_step(config, sentences())
        logged.pop('metrics')
        found.append((logged, jax.device_get(after.params)))
    one, two = (jax.tree.leaves(each) for each in found)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ('options', 'mesh'),
    [
        ({'capacity_factor': None, 'scan': True}, {'expert': 4, 'fsdp': 2}),
        ({}, {'expert': 2, 'fsdp': 2, 'tensor': 2}),
    ],
    ids=['dropless', 'capacity'],
)
def test_a_mesh_gives_the_losses_of_one_device(options, mesh, monkeypatch):
    splits, model = sentences(), {**MODEL, **options}
    with monkeypatch.context() as patch:
        one_device(patch)
        want, _ = losses(build(config_of(model=model, mesh={}), splits), splits)
    found, state = losses(build(config_of(model=model, mesh=mesh), splits), splits)
    np.testing.assert_allclose(found, want, rtol=2e-5)
    kernel = state.params['blocks' if 'scan' in options else 'block_0']['experts']['dense_kernel']
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size
    assert want[0] != want[-1]


def chains(rows=64, length=12, vocab=16):
    """Each token decides the next."""
    after = np.random.default_rng(0).permutation(vocab)
    tokens = [np.random.default_rng(1).integers(vocab, size=rows)]
    for _ in range(length):
        tokens.append(after[tokens[-1]])
    tokens = np.stack(tokens, 1).astype(np.int32)
    return splits_of(tokens[:, :-1], tokens[:, 1:], vocab_size=vocab, tokens=length)


def test_training_learns_and_balances():
    found = {}
    for balance in (0.0, 0.1):
        options = {'layers': 1, 'experts_per_token': 1, 'load_balance': balance}
        run = build(config_of(model={**MODEL, **options}, mesh={}), chains())
        step, state, rows = jax.jit(partial(train_step, run.recipe)), run.init(), []
        for index in range(80):
            batch = batches.train_batch(run.splits.sources['train'], 0, index, 16, slice(0, 16))
            state, logged = step(state, batch)
            rows.append({name: float(logged[name]) for name in logged if name != 'metrics'})
        assert rows[-1]['loss'] < 0.3 * rows[0]['loss']
        for name in ('router_dropped', 'router_balance'):
            found[name, balance] = np.mean([row[name] for row in rows[-20:]])
    assert found['router_dropped', 0.1] < 0.5 * found['router_dropped', 0.0]
    assert found['router_balance', 0.1] < 1.05 < 1.1 < found['router_balance', 0.0]


def test_stopped_and_started_again_is_bit_identical(tmp_path, monkeypatch):
    data = {'name': 'synthetic', 'kind': 'tokens', 'sequence_length': 8, 'vocab_size': 16}
    config = config_of(model={**MODEL, 'layers': 1}, data=data, mesh={'expert': 4, 'fsdp': 2})
    train(config, tmp_path / 'whole')
    test_loop.stop_at(monkeypatch, 4)
    with pytest.raises(Preempted, match='SIGTERM and saved at step 5'):
        train(config, tmp_path / 'halves')
    train(config, tmp_path / 'halves')
    found = test_loop.numbers(tmp_path / 'halves')
    assert found == test_loop.numbers(tmp_path / 'whole')
    assert 'train/router_load' in found[0]
