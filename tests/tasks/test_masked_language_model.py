from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.data import batches
from bigjax.data.core import DataSpec
from bigjax.errors import ConfigError
from bigjax.tasks import masked_language_model
from bigjax.tasks.masked_language_model import Config
from bigjax.train.build import build
from bigjax.train.outcome import evaluator
from bigjax.train.step import train_step
from tests.train.tiny import splits_of, tiny_config

VOCAB, MASK = 50, 3
SPECIAL = {'pad': 0, 'cls': 1, 'sep': 2, 'mask': MASK}
RNG = np.random.default_rng(0)


def task_of(config=Config(), vocab=VOCAB, special=SPECIAL):  # noqa: B008
    row = jax.ShapeDtypeStruct((8,), jnp.int32)
    return masked_language_model.build(
        config, DataSpec(row, row, vocab_size=vocab, special=special)
    )


def batch_of(tokens, **inputs):
    weights = np.ones(len(tokens), np.float32)
    inputs = {'tokens': tokens, **inputs} if inputs else tokens
    return {'inputs': inputs, 'targets': np.zeros_like(tokens), 'weights': weights}


def corrupted(batch, key=0, **config):
    return jax.device_get(task_of(Config(**config)).corrupt(jax.random.key(key), batch))


def test_of_the_chosen_eight_in_ten_are_masked_and_one_is_random():
    tokens = RNG.integers(4, VOCAB, (1000, 100)).astype(np.int32)
    batch = corrupted(batch_of(tokens))
    chosen, seen = batch['weights'] > 0, batch['inputs']
    np.testing.assert_array_equal(chosen.sum(1), 15)
    np.testing.assert_array_equal(batch['targets'], tokens)
    np.testing.assert_array_equal(seen[~chosen], tokens[~chosen])
    by_chance = 0.1 / VOCAB  # a random token may be the mask, or the token itself
    assert (seen == MASK)[chosen].mean() == pytest.approx(0.8 + by_chance, abs=0.01)
    assert (seen == tokens)[chosen].mean() == pytest.approx(0.1 + by_chance, abs=0.01)
    assert (seen == VOCAB - 1)[chosen & (tokens != VOCAB - 1)].any()
    np.testing.assert_allclose(chosen.mean(0), 0.15, atol=0.05)  # every place alike
    assert (corrupted(batch_of(tokens), key=1)['weights'] != batch['weights']).any()


@pytest.mark.parametrize('name', ['mask', 'segments'])
def test_padding_and_special_tokens_are_never_chosen(name):
    tokens = RNG.integers(0, VOCAB, (200, 20)).astype(np.int32)
    real = (np.arange(20) < RNG.integers(1, 20, (200, 1))).astype(np.int32)
    batch = batch_of(tokens, **{name: real.astype(bool) if name == 'mask' else real})
    batch['weights'][:50] = 0
    found = corrupted(batch, rate=0.9)
    free = (real > 0) & (tokens > MASK) & (np.arange(200) >= 50)[:, None]
    assert not found['weights'][~free].any()
    np.testing.assert_array_equal(found['inputs']['tokens'][~free], tokens[~free])
    np.testing.assert_array_equal(found['inputs'][name], real)
    counts = np.maximum(np.round(0.9 * free.sum(1)), free.any(1))
    np.testing.assert_array_equal(found['weights'].sum(1), counts)


def test_the_loss_is_of_the_chosen_alone():
    tokens = RNG.integers(4, VOCAB, (5, 20)).astype(np.int32)
    batch = task_of().corrupt(jax.random.key(0), batch_of(tokens))
    logits = RNG.normal(size=(5, 20, VOCAB)).astype(np.float32)
    found = task_of().loss(lambda _: logits, batch)
    np.testing.assert_array_equal(found.weights, batch['weights'])
    chances = np.asarray(jax.nn.log_softmax(logits))
    expected = -np.take_along_axis(chances, tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(found.values, expected, rtol=1e-5)


def test_a_vocabulary_without_a_mask_token_is_given_one():
    with pytest.raises(ConfigError, match='set mask_id=50 to add a mask token'):
        task_of(special={})
    with pytest.raises(ConfigError, match='got 51'):
        task_of(Config(mask_id=51))
    assert task_of(Config(mask_id=50), special={}).outputs == 51
    assert task_of(Config(mask_id=7), special={}).outputs == 50
    with pytest.raises(ConfigError, match='expects token data'):
        task_of(vocab=None)


MODEL = {'name': 'transformer', 'layers': 1, 'width': 32, 'heads': 2, 'attention': 'bidirectional'}


def runs_of_one_token(rows=64, length=12):
    """Each row is one token over and over: its neighbours tell what is hidden."""
    tokens = np.tile(RNG.integers(4, 16, (rows, 1)), (1, length)).astype(np.int32)
    return splits_of(tokens, tokens, vocab_size=16, tokens=length, special=SPECIAL)


def run_of(splits, **values):
    task = {'name': 'masked_language_model'}
    return build(tiny_config(model=MODEL, task=task, **values), splits)


def test_a_model_learns_from_both_sides_whatever_the_batch_size_of_evaluation():
    splits = runs_of_one_token()
    run = run_of(splits)
    step = jax.jit(partial(train_step, run.recipe))
    with jax.set_mesh(run.mesh):
        state = run.init()
        for index in range(60):
            batch = batches.train_batch(splits.sources['train'], 0, index, 16, slice(0, 16))
            state, _ = step(state, batches.to_device(batch, run.batch_sharding, 16))
            # with many steps in flight, eight virtual devices on few cores can miss each other
            jax.block_until_ready(state)
    variables = jax.device_get(state.eval_variables)
    found = []
    for values in ({}, {'eval.batch_size': 24}, {'mesh.tensor': 2, 'eval.batch_size': 40}):
        run = run_of(splits, **values)
        with jax.set_mesh(run.mesh):
            found.append(evaluator(run)(variables, splits.sources['val']))
    assert found[0]['accuracy'] > 0.9
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)
