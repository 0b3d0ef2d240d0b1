"""A model that was trained, as others use it: without its data and its optimizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bigjax import interop
from bigjax.config import Config, override, resolve
from bigjax.data import tokenizers
from bigjax.data.core import DataSpec
from bigjax.data.tokenizers import Tokenizer
from bigjax.errors import CheckpointError, ConfigError
from bigjax.models.core import Model
from bigjax.sharding.mesh import make_mesh
from bigjax.sharding.rules import parameter_shardings
from bigjax.train import checkpoint, folder
from bigjax.train.build import build_model, build_task

DEFAULT_LENGTH = 128
"""Of rows, where nothing in the parameters depends on it."""


class Trained(NamedTuple):
    """params lie on the mesh, each where the sharding rules put it. length: tokens of a row."""

    config: Config
    model: Model
    params: Any
    tokenizer: Tokenizer
    mesh: Mesh
    length: int


def load(
    workdir: Path, which: str | None = None, overrides: Sequence[tuple[str, str]] = ()
) -> Trained:
    """The text model of a run, under its config with `overrides`.

    which: 'latest', 'best' or a step; by default the best where the run kept one.
    Raises: ConfigError or CheckpointError.
    """
    config = override(folder.saved_config(workdir), overrides)
    place = workdir / folder.TOKENIZER
    if not place.is_dir():
        raise ConfigError(f'{workdir} has no {folder.TOKENIZER}/: expected a run on text')
    tokenizer = tokenizers.load(place)
    mesh = make_mesh(config.mesh)
    with (
        jax.set_mesh(mesh),
        checkpoint.open_checkpoints(workdir, config.checkpoint) as checkpoints,
    ):
        which = which or ('best' if config.checkpoint.best else 'latest')
        step = checkpoint.pick(checkpoints, which, config.checkpoint.best)
        shapes = checkpoint.saved_shapes(checkpoints, step)
        length = shapes.get('params/positions/embedding', (DEFAULT_LENGTH,))[0]
        model = _model(config, tokenizer, length)
        params = checkpoint.restore_params(checkpoints, step, _placed(model, mesh))
    return Trained(config, model, params, tokenizer, mesh, length)


def import_run(path: Path, workdir: Path) -> None:
    """Makes a run folder of a hub folder or GGUF file: config, tokenizer, parameters at step 0.

    A decoder becomes a language model, an encoder a masked one. The data that its config names is a
    stand-in: give your own with `--config.data.path=...`.
    Raises: ConfigError, CheckpointError, DataError, EnvironmentProblem.
    """
    if workdir.exists() and any(workdir.iterdir()):
        raise ConfigError(f'{workdir} is not empty; choose another --workdir')
    found = interop.open_pretrained(path)
    options = {**found.options, 'vocab_size': found.vocabulary}
    task = 'language_model'
    if options.get('attention') == 'bidirectional':
        task = 'masked_language_model'
        options |= {'head': 'tokens', 'head_transform': found.has('head')}
    length = min(256, options.get('max_length', 256))
    tokenizer = found.tokenizer()
    config = resolve(
        {
            'model': {'name': 'transformer', **options},
            'task': task,
            'data': {
                'name': 'text',
                'tokenizer': str((workdir / folder.TOKENIZER).absolute()),
                'sequence_length': length,
            },
            'train': {'steps': 1, 'batch_size': 8},
        }
    )
    mesh = make_mesh(config.mesh)
    model = _model(config, tokenizer, length)
    placed = _placed(model, mesh)
    params, missing = interop.read_params(found, placed)
    if missing:
        raise CheckpointError(f'{path} lacks {len(missing)} parameters, the first {missing[0]}')
    folder.claim(workdir, config)
    folder.claim_tokenizer(workdir, tokenizer)
    with checkpoint.open_checkpoints(workdir, config.checkpoint) as checkpoints:
        checkpoint.save_params(checkpoints, params)


def _placed(model: Model, mesh: Mesh) -> Any:
    """The parameters as shapes with shardings."""
    abstract = model.abstract()['params']
    shardings, _ = parameter_shardings(model.axes['params'], abstract, mesh)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        shardings,
    )


def _model(config: Config, tokenizer: Tokenizer, length: int) -> Model:
    row = jax.ShapeDtypeStruct((length,), np.int32)
    spec = DataSpec(
        row, row, vocab_size=tokenizer.vocab_size, tokens=length, special=tokenizer.special
    )
    return build_model(config, spec, build_task(config, spec))
