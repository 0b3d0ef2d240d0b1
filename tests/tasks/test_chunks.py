"""The loss of tokens in chunks is the loss of them all at once, in less memory."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from bigjax.data import batches
from bigjax.data.core import ArraySource
from bigjax.sharding.mesh import replicated
from bigjax.train.build import build
from bigjax.train.outcome import evaluator
from bigjax.train.step import train_step
from tests.train.tiny import sentences, splits_of, tiny_config

MODEL = {'name': 'transformer', 'layers': 1, 'width': 16, 'heads': 2}
ENCODER = MODEL | {'attention': 'bidirectional', 'head_transform': True}
METRICS = ('accuracy', 'top_5', 'perplexity', 'calibration_error')


def config_of(chunk, model=MODEL, task='language_model', mesh=None, train=None, **options):
    return tiny_config(
        model=model,
        task={'name': task, 'options': {'chunk': chunk, **options}},
        mesh=mesh or {},
        optimizer={'name': 'sgd', 'learning_rate': 1.0},
        train={'steps': 6, 'batch_size': 16, **(train or {})},
        eval={'metrics': METRICS},
    )


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
    """Of one step: what it logs and the parameters after it; and what evaluation measures."""
    run = build(config, splits)
    places = (run.shardings, replicated(run.mesh))
    with jax.set_mesh(run.mesh):
        state = run.init()
        batch = batches.train_batch(splits.sources['train'], 0, 0, 16, slice(0, 16))
        batch = batches.to_device(batch, run.batch_sharding, 16)
        after, logged = jax.jit(partial(train_step, run.recipe), out_shardings=places)(state, batch)
        measured = evaluator(run)(state.eval_variables, splits.sources['val'])
    return jax.device_get((logged, after.params, measured))


CASES = {
    'tied': {},
    'untied-smoothed-capped': {
        'model': MODEL | {'tied': False, 'logit_soft_cap': 0.5},
        'label_smoothing': 0.1,
        'z_loss': 0.1,
    },
    'packed': {'splits': packed},
    'masked': {'model': ENCODER, 'task': 'masked_language_model', 'mask_id': 0},
    'accumulated-scanned-remat': {
        'model': MODEL | {'scan': True, 'remat': 'dots', 'layers': 2},
        'train': {'accumulation': 2},
    },
    'vocabulary-split': {'mesh': {'tensor': 4, 'data': 2}, 'z_loss': 0.1},
    'all-split': {'mesh': {'tensor': 2, 'fsdp': 2, 'data': 2}, 'model': MODEL | {'tied': False}},
}


@pytest.mark.parametrize('case', CASES)
def test_chunks_change_no_number(case):
    options = dict(CASES[case])
    splits = options.pop('splits', sentences)()
    whole, parts = (outcome(splits, config_of(chunk, **options)) for chunk in (None, 4))
    for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(two, one, rtol=2e-5, atol=1e-6)
