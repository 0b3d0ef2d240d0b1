"""The state of training: what is saved, restored, and returned by every step."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bigjax import trees
from bigjax.models.core import Model
from bigjax.optim.shardings import state_shardings
from bigjax.sharding.mesh import replicated
from bigjax.sharding.rules import parameter_shardings
from bigjax.train import guard, loss_scale, noise
from bigjax.train.guard import Guard
from bigjax.train.loss_scale import LossScale
from bigjax.train.noise import NoiseAverages


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """step: int32 [], updates done so far.

    collections: the model's other variables, such as batch statistics.
    ema: the moving average of params, or None.
    rng: the key of the run; each step folds its number in, so it never changes.
    guard: counts what was refused (`train.guard`).
    loss_scale: of float16 compute, or None.
    noise: averages of the gradient noise, where it is measured, or None.
    """

    step: Any
    params: Any
    collections: Any
    optimizer: Any
    ema: Any
    rng: Any
    guard: Guard
    loss_scale: LossScale | None = None
    noise: NoiseAverages | None = None

    @property
    def eval_variables(self) -> dict[str, Any]:
        """What evaluation applies the model to: the averaged parameters where there are any."""
        return {'params': self.params if self.ema is None else self.ema, **self.collections}


def init(
    model: Model,
    optimizer: optax.GradientTransformation,
    with_ema: bool,
    with_loss_scale: bool,
    with_noise: bool,
    rng: jax.Array,
) -> TrainState:
    """A fresh state; pure, so that jit with output shardings makes every leaf in its place."""
    init_rng, run_rng = jax.random.split(rng)
    collections = dict(model.init(init_rng))
    params = collections.pop('params')
    ema = jax.tree.map(jnp.copy, params) if with_ema else None
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        collections=collections,
        optimizer=optimizer.init(params),
        ema=ema,
        rng=run_rng,
        guard=guard.first(),
        loss_scale=loss_scale.first() if with_loss_scale else None,
        noise=noise.first() if with_noise else None,
    )


def nonfinite(state: TrainState) -> dict[str, jax.Array]:
    """Of each leaf of floats, by its path: bool [], whether it holds a NaN or an infinity."""
    named = [(trees.path_name(path), leaf) for path, leaf in jax.tree.leaves_with_path(vars(state))]
    return {
        name: ~jnp.isfinite(leaf).all()
        for name, leaf in named
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }


def shardings(
    model: Model, optimizer: optax.GradientTransformation, abstract: TrainState, mesh: Mesh
) -> tuple[TrainState, list[str]]:
    """A NamedSharding for each leaf of the state, and notes on those that had to stay whole."""
    axes = dict(model.axes)
    params, notes = parameter_shardings(axes.pop('params'), abstract.params, mesh)
    collections, _ = parameter_shardings(axes, abstract.collections, mesh)
    placed = TrainState(
        step=replicated(mesh),
        params=params,
        collections=collections,
        optimizer=state_shardings(optimizer, abstract.params, params),
        ema=None if abstract.ema is None else params,
        rng=replicated(mesh),
        guard=jax.tree.map(lambda _: replicated(mesh), abstract.guard),
        loss_scale=jax.tree.map(lambda _: replicated(mesh), abstract.loss_scale),
        noise=jax.tree.map(lambda _: replicated(mesh), abstract.noise),
    )
    return placed, notes
