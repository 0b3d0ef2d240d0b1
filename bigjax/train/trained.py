"""A model that was trained, as others use it: without its data and its optimizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bigjax.config import Config, override
from bigjax.data import tokenizers
from bigjax.data.core import DataSpec
from bigjax.data.tokenizers import Tokenizer
from bigjax.errors import ConfigError
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
        model = _model(config, tokenizer, length=shapes.get('params/positions/embedding', (16,))[0])
        abstract = model.abstract()['params']
        shardings, _ = parameter_shardings(model.axes['params'], abstract, mesh)
        placed = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            abstract,
            shardings,
        )
        params = checkpoint.restore_params(checkpoints, step, placed)
    return Trained(config, model, params, tokenizer, mesh)


def _model(config: Config, tokenizer: Tokenizer, length: int) -> Model:
    row = jax.ShapeDtypeStruct((length,), np.int32)
    spec = DataSpec(row, row, vocab_size=tokenizer.vocab_size, tokens=length)
    return build_model(config, spec, build_task(config, spec))
