"""One training step and one evaluation step: pure functions; jit and shardings are put on outside.

The loss of a step is the weighted mean over the global batch, so it does not depend on the number
of devices or microbatches; penalties on weights are added once a step. Losses that the model itself
has of a row (a router's, `nn.experts`) weigh as much as the row does.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bigjax import losses, metrics
from bigjax.config import GuardConfig
from bigjax.data.core import Batch
from bigjax.metrics import MetricGroup
from bigjax.models.core import Model
from bigjax.nn import experts
from bigjax.tasks.core import Losses, Task
from bigjax.train import guard, loss_scale, noise
from bigjax.train.state import TrainState


@dataclass(frozen=True)
class Recipe:
    """Everything about a step that does not change from step to step.

    forward: the model as the task reads it, whole or in parts.
    trained: a tree like the parameters, False for those that cost no gradient and no penalty.
    standardise: a raw batch -> what the model reads. augment: (key, batch) -> batch, training only.
    noise_every: steps from one measurement of the gradient noise to the next; 0: none is made.
    """

    model: Model
    forward: Callable[..., Any]
    task: Task
    optimizer: optax.GradientTransformation
    schedule: Callable[[jax.Array], jax.Array]
    trained: Any
    standardise: Callable[[Batch], Batch]
    augment: Callable[[jax.Array, Batch], Batch]
    train_groups: dict[str, MetricGroup]
    accumulation: int = 1
    l1: float = 0.0
    l2: float = 0.0
    ema: float | None = None
    growth_steps: int = 2000
    guard: GuardConfig = field(default_factory=GuardConfig)
    noise_every: int = 0


def train_step(
    recipe: Recipe, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, Any]]:
    """The next state, and device values to log: scalars, and sums of the training metrics."""
    step_rng = jax.random.fold_in(state.rng, state.step)
    augment_rng, model_rng = jax.random.split(step_rng)
    batch = recipe.standardise(recipe.augment(augment_rng, batch))
    if recipe.task.corrupt is not None:
        batch = recipe.task.corrupt(jax.random.fold_in(step_rng, 2), batch)
    loss, grads, collections, (sums, diagnostics), parts = _accumulated(
        recipe, state, batch, model_rng
    )
    trained = _trained(recipe, state.params)
    penalty, penalty_grads = jax.value_and_grad(_penalty, argnums=1)(recipe, trained)
    plain, grads = grads, jax.tree.map(jnp.add, grads, penalty_grads)
    grads = _filled(grads, jax.tree.map(jnp.zeros_like, state.params))
    logged = {
        'loss': loss + penalty,
        'grad_norm': optax.tree.norm(grads),
        'learning_rate': jnp.asarray(recipe.schedule(state.step), jnp.float32),
        'metrics': sums,
        **experts.metrics(diagnostics),
    }
    finite, scale, excused = jnp.isfinite(logged['grad_norm']), state.loss_scale, jnp.bool(False)
    if scale is not None:
        excused = scale.scale >= loss_scale.LOWEST
        scale = loss_scale.after_step(scale, finite, recipe.growth_steps)
        logged['loss_scale'] = scale.scale
    averages = state.noise
    if averages is not None:
        averages = noise.after_step(
            averages, _noise_due(recipe, state), parts, plain, logged['grad_norm']
        )
        logged |= noise.metrics(averages)
    finite &= jnp.isfinite(logged['loss'])
    taken, counts, verdict = guard.after_step(
        recipe.guard, state.guard, logged['loss'], finite, excused
    )
    logged |= {'skipped_steps': counts.skipped, 'in_row': counts.in_row, 'verdict': verdict}
    # a branch: a select between old and new would keep both, and copy
    after = jax.lax.cond(
        taken, partial(_updated, recipe), lambda state, *_: state, state, grads, collections
    )
    after = dataclasses.replace(
        after, step=state.step + 1, guard=counts, loss_scale=scale, noise=averages
    )
    return after, logged


def eval_step(
    recipe: Recipe, groups: dict[str, MetricGroup], variables: Any, batch: Batch
) -> dict[str, Any]:
    """Sums over one batch: of the loss, of its weights, and of the metrics."""
    batch = recipe.standardise(batch)
    if recipe.task.corrupt is not None:
        batch = recipe.task.corrupt(jax.random.key(0), batch)

    def apply(inputs: Any) -> Any:
        return recipe.forward(variables, inputs, train=False)[0]

    found = recipe.task.loss(apply, batch)
    return {
        'loss': _weighted_sum(found),
        'weight': jnp.sum(found.weights),
        'metrics': metrics.update(groups, found.outputs, found.targets, _counts(batch, found)),
    }


def predict_step(recipe: Recipe, variables: Any, batch: Batch) -> jax.Array:
    """What the model says of one batch, as the task shows it to people."""
    inputs = recipe.standardise(batch)['inputs']
    return recipe.task.predict(recipe.model.apply(variables, inputs, train=False)[0])


def _accumulated(
    recipe: Recipe, state: TrainState, batch: Batch, rng: jax.Array
) -> tuple[jax.Array, Any, Any, Any, Any]:
    """Mean loss, its gradient (None if frozen), the collections, sums to log, and what tells the
    gradient noise (None if it is not measured): over all parts."""
    count = recipe.accumulation
    rows = jax.tree.leaves(batch)[0].shape[0]
    unit = rows if state.loss_scale is None else rows / state.loss_scale.scale

    def gradients(collections: Any, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        """Sums over one microbatch, over `unit` to keep numbers near one; and the collections."""
        differentiate = jax.value_and_grad(_loss_sum, argnums=1, has_aux=True)
        (loss, (weight, sums, collections)), grads = differentiate(
            recipe, _trained(recipe, state.params), state.params, collections, batch, rng, unit
        )
        parts = None
        if recipe.noise_every:
            parts = noise.of_microbatch(_noise_due(recipe, state), grads, unit, weight)
        return collections, (loss, grads, weight, sums, parts)

    if count == 1:
        collections, totals = gradients(state.collections, rng, batch)
    else:
        microbatches = jax.tree.map(lambda leaf: _split_rows(leaf, count), batch)

        def body(carry: Any, microbatch: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            collections, totals = carry
            collections, more = gradients(collections, *microbatch)
            return (collections, jax.tree.map(jnp.add, totals, more)), None

        inputs = (jax.random.split(rng, count), microbatches)
        first = jax.tree.map(lambda leaf: leaf[0], inputs)
        _, shapes = jax.eval_shape(gradients, state.collections, *first)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (collections, totals), _ = jax.lax.scan(body, (state.collections, zeros), inputs)
    loss, grads, weight, sums, parts = totals
    scale = unit / weight
    return loss * scale, jax.tree.map(lambda grad: grad * scale, grads), collections, sums, parts


def _noise_due(recipe: Recipe, state: TrainState) -> jax.Array:
    return state.step % recipe.noise_every == 0


def _loss_sum(
    recipe: Recipe,
    trained: Any,
    params: Any,
    collections: Any,
    batch: Batch,
    rng: jax.Array,
    unit: jax.typing.ArrayLike,
) -> tuple[jax.Array, tuple[jax.Array, Any, Any]]:
    changed: dict[str, Any] = {}

    def apply(inputs: Any) -> Any:
        variables = {'params': _filled(trained, params), **collections}
        outputs, new = recipe.forward(variables, inputs, train=True, rngs={'dropout': rng})
        changed.update(new)
        return outputs

    found = recipe.task.loss(apply, batch)
    sums = metrics.update(
        recipe.train_groups,
        jax.lax.stop_gradient(found.outputs),
        found.targets,
        _counts(batch, found),
    )
    extra, diagnostics = changed.pop('losses', {}), changed.pop('diagnostics', {})
    loss = _weighted_sum(found) + _row_losses(found, extra)
    aux = jnp.sum(found.weights), (sums, diagnostics), {**collections, **changed}
    return loss / unit, aux


def _updated(recipe: Recipe, state: TrainState, grads: Any, collections: Any) -> TrainState:
    updates, optimizer = recipe.optimizer.update(grads, state.optimizer, state.params)
    params, ema = optax.apply_updates(state.params, updates), state.ema
    if recipe.ema is not None:
        ema = optax.incremental_update(params, ema, step_size=1 - recipe.ema)
    return dataclasses.replace(
        state, params=params, collections=collections, optimizer=optimizer, ema=ema
    )


def _trained(recipe: Recipe, params: Any) -> Any:
    """The parameters with None for those that are frozen."""
    return jax.tree.map(lambda keep, leaf: leaf if keep else None, recipe.trained, params)


def _filled(tree: Any, params: Any) -> Any:
    """The tree with leaves of `params` where it has None."""
    return jax.tree.map(lambda leaf, own: leaf if own is None else own, params, tree)


def _weighted_sum(found: Losses) -> jax.Array:
    # where, not a product alone: padding may hold anything, and 0 * nan is nan
    return jnp.sum(jnp.where(found.weights > 0, found.values * found.weights, 0.0))


def _row_losses(found: Losses, extra: Any) -> jax.Array:
    """The model's own losses of rows, [..., B] each, weighed as all of the row is."""
    weights = found.weights.reshape(len(found.weights), -1).sum(1)
    total = jnp.zeros((), jnp.float32)
    for leaf in jax.tree.leaves(extra):
        total += jnp.sum(leaf.reshape(-1, len(weights)).sum(0) * weights)
    return total


def _counts(batch: Batch, found: Losses) -> jax.Array:
    """The batch's own weights, a token or an example each; class weights are not for metrics."""
    weights = batch['weights']
    extra = found.weights.ndim - weights.ndim
    return jnp.broadcast_to(weights.reshape(weights.shape + (1,) * extra), found.weights.shape)


def _split_rows(leaf: jax.Array, count: int) -> jax.Array:
    """[B, ...] into [count, B / count, ...], every microbatch evenly from every device's rows."""
    rows = leaf.shape[0] // count
    return jnp.moveaxis(leaf.reshape(rows, count, *leaf.shape[1:]), 1, 0)


def _penalty(recipe: Recipe, params: Any) -> jax.Array:
    total = jnp.zeros((), jnp.float32)
    if recipe.l1:
        total += recipe.l1 * losses.l1_penalty(params)
    if recipe.l2:
        total += recipe.l2 * losses.l2_penalty(params)
    return total
