"""`bigjax export`: the Transformer of a run, for others to use."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from bigjax import interop, schema
from bigjax.config import Config
from bigjax.data import tokenizers
from bigjax.data.tokenizers import Tokenizer
from bigjax.errors import ConfigError
from bigjax.interop.export import Trained
from bigjax.models import lora, transformer
from bigjax.models.transformer import Transformer
from bigjax.sharding.mesh import make_mesh
from bigjax.train import checkpoint, folder, trained


def export_run(workdir: Path, out: Path, to: str, which: str | None = None) -> None:
    """As `interop.export`. which: 'latest', 'best' or a step; the best where the run kept one.

    Raises: ConfigError, CheckpointError, EnvironmentProblem.
    """
    config = folder.saved_config(workdir)
    if config.model.name != 'transformer':
        raise ConfigError(f'{workdir}: expected a transformer to export, got {config.model.name}')
    if config.parametrization.name != 'sp':
        raise ConfigError(
            f"{workdir}: expected config.parametrization.name 'sp', got "
            f'{config.parametrization.name!r}, whose multipliers other tools do not apply'
        )
    place = workdir / folder.TOKENIZER
    tokenizer = tokenizers.load(place) if place.is_dir() else None
    with checkpoint.open_checkpoints(workdir, config.checkpoint) as checkpoints:
        which = which or ('best' if config.checkpoint.best else 'latest')
        step = checkpoint.pick(checkpoints, which, config.checkpoint.best)
        module = _module(config, checkpoint.saved_shapes(checkpoints, step), tokenizer)
        if config.lora is not None:  # the adapters are folded in
            params = lora.merge(trained.load(workdir, str(step)).params, config.lora)
        else:
            placed = interop.abstract_params(module, make_mesh(config.mesh))
            params = checkpoint.restore_params(checkpoints, step, placed)
    interop.export(Trained(module, jax.device_get(params), tokenizer), out, to)


def _module(config: Config, shapes: Any, tokenizer: Tokenizer | None) -> Transformer:
    """What a config does not say, the data does, which need not be here: the shapes tell it."""
    options = schema.build(transformer.Config, config.model.options, 'config.model')
    sizes = {name.removeprefix('params/'): shape for name, shape in shapes.items()}
    if 'embed/embedding' not in sizes:
        raise ConfigError('config.model: expected a transformer of tokens to export, not vectors')
    vocabulary = sizes['embed/embedding'][0]
    tokens = min(vocabulary, tokenizer.vocab_size) if tokenizer else vocabulary
    outputs = (sizes.get('head_bias') or sizes.get('read_out/kernel') or (tokens,))[-1]
    longest = trained.max_length(config, shapes)
    known = dataclasses.replace(options, vocab_size=vocabulary, max_length=longest)
    return interop.make_module(known, outputs)
