"""A run folder from pretrained weights, for what starts from a run: eval, generate, init_from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax import config as configs
from bigjax import trees
from bigjax.config import Horizon
from bigjax.errors import ConfigError
from bigjax.interop.families import BERT
from bigjax.interop.weights import (
    Pretrained,
    make_module,
    model_config,
    open_pretrained,
    read_all,
    require_tokens,
)
from bigjax.models import transformer
from bigjax.optim import optimizers, schedules
from bigjax.sharding.mesh import make_mesh
from bigjax.train import checkpoint, folder
from bigjax.train.state import TrainState

LENGTH = 1024
"""Tokens a row of the run's data, where the model takes as many."""


def import_run(path: Path | str, workdir: Path, overrides: Sequence[tuple[str, str]] = ()) -> Path:
    """A new run folder at step 0 that holds the model of `path` and its tokenizer.

    Its data is text in the tokenizer's tokens: by default that of Python's library, so that
    `eval` has something to read; `overrides` such as ('data.path', 'my.txt') say otherwise.
    Raises: ConfigError, CheckpointError, DataError, EnvironmentProblem.
    """
    if workdir.exists():
        raise ConfigError(f'--workdir: {workdir} exists, and is not written over; choose another')
    pretrained = open_pretrained(path)
    tokenizer = pretrained.tokenizer()
    require_tokens(pretrained, tokenizer)
    config = configs.override(configs.resolve(_run_config(pretrained, workdir)), overrides)
    module = make_module(model_config(pretrained, **config.model.options), pretrained.vocabulary)
    mesh = make_mesh(config.mesh)
    params = trees.map_with_name(
        # of the tokens there are: tables of models are often padded
        lambda name, leaf: leaf[..., : tokenizer.vocab_size] if name in READ_OUTS else leaf,
        read_all(pretrained, module, mesh),
    )
    folder.claim(workdir, config)
    folder.claim_tokenizer(workdir, tokenizer)
    with jax.set_mesh(mesh), checkpoint.open_checkpoints(workdir, config.checkpoint) as checkpoints:
        checkpoint.save(checkpoints, 0, _state(config, module, params), {})
    return workdir


READ_OUTS = ('read_out/kernel', 'head_bias')


def _run_config(pretrained: Pretrained, workdir: Path) -> dict[str, Any]:
    options = dict(pretrained.options)
    masked = options.get('attention') == 'bidirectional'
    if masked and 'cls.predictions.bias' in pretrained.tensors:
        options |= BERT.heads['BertForMaskedLM']
    return {
        'model': {'name': 'transformer', **options},
        'task': 'masked_language_model' if masked else 'language_model',
        'data': {
            'name': 'text',
            'tokenizer': str((workdir / folder.TOKENIZER).absolute()),
            'sequence_length': min(options['max_length'], LENGTH),
        },
        'train': {'steps': 1, 'batch_size': 8},
        'optimizer': 'sgd',
    }


def _state(config: configs.Config, module: Any, params: Any) -> TrainState:
    """As a run would have it that has done no step yet."""
    horizon = Horizon(config.train.batch_size, config.train.batch_size, total_steps=1)
    schedule = schedules.build(config.optimizer.schedule, config.optimizer.learning_rate, horizon)
    axes = transformer.as_model(module, jax.ShapeDtypeStruct((1, 1), np.int32)).axes['params']
    optimizer = optimizers.build(config.optimizer, schedule, params, axes)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        collections={},
        optimizer=jax.jit(optimizer.init)(params),
        ema=None if config.optimizer.ema is None else params,
        rng=jax.random.key(config.seed),
    )
