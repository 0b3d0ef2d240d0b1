"""A model that was trained, as others use it: without its data and its optimizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bigjax import components, interop, schema, trees
from bigjax.config import Config, resolve
from bigjax.config_file import override
from bigjax.data import tokenizers
from bigjax.data.core import DataSpec
from bigjax.data.tokenizers import Tokenizer
from bigjax.errors import CheckpointError, ConfigError
from bigjax.models import transformer
from bigjax.models.core import Model
from bigjax.sharding.mesh import make_mesh
from bigjax.sharding.rules import parameter_shardings
from bigjax.train import checkpoint, folder
from bigjax.train.build import build_model, build_task


class Trained(NamedTuple):
    """params lie on the mesh, each where the sharding rules put it."""

    config: Config
    model: Model
    params: Any
    tokenizer: Tokenizer
    mesh: Mesh


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
        length = max_length(config, shapes)
        model = _model(config, tokenizer, length)
        params = checkpoint.restore_params(checkpoints, step, _placed(model, mesh))
    return Trained(config, model, params, tokenizer, mesh)


def max_length(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Positions of the longest text: of a learned table among the saved shapes, or as the config
    says, or as in the data that it names, which need not be here. Raises: ConfigError."""
    table = shapes.get('params/positions/embedding')
    if table is not None:
        return table[0]
    if said := config.model.options.get('max_length'):
        return said
    module = components.find('data', config.data.name, 'config.data.name')
    return components.build_config(module, config.data.options, 'config.data').sequence_length


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
    interop.require_tokens(found, tokenizer)
    _model(config, tokenizer, length)  # refuses, before anything is written, what cannot be run
    params = _without_spare_logits(_read(found, config), tokenizer.vocab_size)
    folder.claim(workdir, config)
    folder.claim_tokenizer(workdir, tokenizer)
    with checkpoint.open_checkpoints(workdir, config.checkpoint) as checkpoints:
        checkpoint.save_params(checkpoints, params)


def _read(found: interop.Pretrained, config: Config) -> Any:
    """All parameters of the model. Raises: CheckpointError for what the files lack."""
    options = schema.build(transformer.Config, config.model.options, 'config.model')
    module = interop.make_module(options, found.vocabulary)
    shapes = interop.abstract_params(module, make_mesh(config.mesh))
    params, missing = interop.read_params(found, shapes)
    if missing:
        raise CheckpointError(f'{found.where} lacks {len(missing)} parameters: {missing[0]}')
    return params


def _without_spare_logits(params: Any, tokens: int) -> Any:
    """A read-out may be padded beyond the tokenizer's tokens, which a task's outputs are not."""
    spared = ('read_out/kernel', 'head_bias')
    return trees.map_with_name(
        lambda name, leaf: leaf[..., :tokens] if name in spared else leaf, params
    )


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
