"""The loss of tokens in chunks is the loss of them all at once, in less memory."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from bigjax.config import LoraConfig
from bigjax.data import batches
from bigjax.data.core import ArraySource
from bigjax.errors import ConfigError
from bigjax.sharding.mesh import replicated
from bigjax.train.build import batch_spec, build, metric_groups
from bigjax.train.outcome import evaluator
from bigjax.train.step import train_step
from tests.train.tiny import sentences, splits_of, tiny_config

MODEL = {'name': 'transformer', 'layers': 1, 'width': 16, 'heads': 2}
ENCODER = MODEL | {'attention': 'bidirectional', 'head_transform': True}
METRICS = ('accuracy', 'top_5', 'perplexity', 'calibration_error')


def config_of(
    chunk, model=MODEL, task='language_model', mesh=None, train=None, lora=None, **options
):
    config = tiny_config(
        model=model,
        task={'name': task, 'options': {'chunk': chunk, **options}},
        mesh=mesh or {},
        optimizer={'name': 'sgd', 'learning_rate': 1.0},
        train={'steps': 6, 'batch_size': 16, **(train or {})},
        eval={'metrics': METRICS},
    )
    return dataclasses.replace(config, lora=lora)


def packed(rows=48, length=12):
    """Two documents a row, and padding."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 16, size=(rows, length + 1)).astype(np.int32)
    segments = np.repeat([1, 2, 0], [5, 5, 2])[None] * np.ones((rows, 1), np.int32)
    inputs = {'tokens': tokens[:, :-1], 'segments': segments.astype(np.int32)}
    weights = (inputs['segments'] > 0).astype(np.float32)
    splits = splits_of(tokens[:, :-1], tokens[:, 1:], vocab_size=16, tokens=length)
    shape = {name: jax.ShapeDtypeStruct((length,), np.int32) for name in inputs}
    source = ArraySource({'inputs': inputs, 'targets': tokens[:, 1:], 'weights': weights})
    spec = dataclasses.replace(splits.spec, inputs=shape)
    return dataclasses.replace(splits, sources=dict.fromkeys(splits.sources, source), spec=spec)


def outcome(splits, config):
    """Of one step: what it logs, with sums of all metrics, and the parameters after it."""
    run = build(config, splits)
    recipe = dataclasses.replace(run.recipe, train_groups=metric_groups(config, run.recipe.task))
    step = jax.jit(
        partial(train_step, recipe),
        out_shardings=(run.shardings, replicated(run.mesh)),
        compiler_options={'xla_backend_optimization_level': 0},  # to compile, not to run
    )
    with jax.set_mesh(run.mesh):
        batch = batches.train_batch(splits.sources['train'], 0, 0, 16, slice(0, 16))
        after, logged = step(run.init(), batches.to_device(batch, run.batch_sharding, 16))
    return jax.device_get((logged, after.params))


SPLIT = {'tensor': 2, 'fsdp': 2, 'data': 2}
CASES = {
    'packed': {'splits': packed, 'mesh': SPLIT, 'z_loss': 0.1},
    'untied': {
        'model': MODEL | {'tied': False, 'logit_soft_cap': 0.5},
        'mesh': SPLIT,
        'label_smoothing': 0.1,
        'z_loss': 0.1,
    },
    'sequence-split': {'mesh': {'data': 1, 'fsdp': 2, 'context': 2, 'tensor': 2}},
    'masked': {'model': ENCODER, 'task': 'masked_language_model', 'mask_id': 0},
    'accumulated': {
        'model': MODEL | {'scan': True, 'remat': 'dots', 'layers': 2},
        'train': {'accumulation': 2},
    },
    'adapted': {'model': MODEL | {'tied': False}, 'lora': LoraConfig(2, targets='read_out/kernel')},
}


@pytest.mark.parametrize('case', CASES)
def test_chunks_change_no_number(case):
    options = dict(CASES[case])
    splits = options.pop('splits', sentences)()
    whole, parts = (outcome(splits, config_of(chunk, **options)) for chunk in (None, 4))
    for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(two, one, rtol=2e-5, atol=1e-6)


def test_evaluation_is_in_chunks_too():
    splits, found = sentences(), []
    for chunk in (None, 4):
        run = build(config_of(chunk), splits)
        with jax.set_mesh(run.mesh):
            found.append(evaluator(run)(run.init().eval_variables, splits.sources['val']))
    assert found[0].keys() > {'loss', 'top_5', 'perplexity', 'calibration_error'}
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_all_logits_are_never_held_at_once():
    splits, rows, length, vocab = sentences(length=128, vocab=4096), 16, 128, 4096
    bytes_of = {}
    for chunk in (None, 16):
        run = build(config_of(chunk), splits)
        batch = jax.tree.map(
            lambda leaf, where=run.batch_sharding: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=where
            ),
            batch_spec(splits.spec, rows),
        )
        places = (run.shardings, replicated(run.mesh))
        step = jax.jit(partial(train_step, run.recipe), donate_argnums=0, out_shardings=places)
        with jax.set_mesh(run.mesh):
            memory = step.lower(run.abstract, batch).compile().memory_analysis()
        bytes_of[chunk] = memory.temp_size_in_bytes
    logits = 4 * rows * length * vocab // jax.device_count()
    assert bytes_of[None] > 2 * logits  # they and their gradient
    assert bytes_of[16] < bytes_of[None] - 1.5 * logits


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ConfigError, match=r'config.task.chunk: expected a divisor of 12.*use 4'):
        build(config_of(8), sentences())
    rnn = {'name': 'rnn', 'cell': 'lstm', 'width': 16, 'vocab_size': 16, 'head': 'all'}
    with pytest.raises(ConfigError, match='gives its read-out apart, got rnn; leave chunk out'):
        build(config_of(4, model=rnn), sentences())
