"""From a config to everything a run needs, on abstract shapes: nothing is materialised here."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from bigjax import components, interop, metrics
from bigjax.config import Config
from bigjax.data import augment
from bigjax.data.core import Batch, DataSpec, Splits
from bigjax.data.load import load as load_data
from bigjax.durations import Horizon
from bigjax.errors import ConfigError, DataError
from bigjax.models import lora, parametrization
from bigjax.models.core import Model
from bigjax.nn.blocks import HOST_MEMORY
from bigjax.optim import groups, moments, optimizers, schedules
from bigjax.sharding.mesh import (
    batch_sharding,
    check_batch_size,
    check_divides,
    make_mesh,
    replicated,
)
from bigjax.sharding.rules import check_parameters
from bigjax.tasks.core import Task
from bigjax.train import state as states
from bigjax.train.state import TrainState
from bigjax.train.step import Recipe, train_step


@dataclass(frozen=True)
class Run:
    """A config made concrete.

    abstract: the state as shapes with shardings; notes: parameters that a rule could not split.
    """

    config: Config
    mesh: Mesh
    splits: Splits
    horizon: Horizon
    recipe: Recipe
    abstract: TrainState
    notes: list[str]

    @property
    def total_steps(self) -> int:
        assert self.horizon.total_steps is not None
        return self.horizon.total_steps

    @property
    def shardings(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    @property
    def batch_sharding(self) -> NamedSharding:
        return batch_sharding(self.mesh)

    @property
    def abstract_batch(self) -> Batch:
        """A training batch as shapes with shardings."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.batch_sharding),
            batch_spec(self.splits.spec, self.config.train.batch_size),
        )

    def jitted_step(self) -> Any:
        """`train_step` as the loop runs it; the state that goes in is given up."""
        return jax.jit(
            partial(train_step, self.recipe),
            donate_argnums=0,
            out_shardings=(self.shardings, replicated(self.mesh)),
        )

    @property
    def eval_batch_size(self) -> int:
        return self.config.eval.batch_size or self.config.train.batch_size

    def init(self, seed: int | None = None) -> TrainState:
        """A fresh state, each leaf made where it belongs; of the config's seed unless given."""
        make = _init(self.config, self.recipe.model, self.recipe.optimizer)
        rng = jax.random.key(self.config.seed if seed is None else seed)
        return jax.jit(make, out_shardings=self.shardings)(rng)

    def restart(self, state: TrainState, params: Any) -> TrainState:
        """`state` as if `params` had been its initial ones; some optimizers remember those."""

        def make(params: Any) -> tuple[Any, Any]:
            ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
            return self.recipe.optimizer.init(params), ema

        places = (self.shardings.optimizer, self.shardings.ema)
        optimizer, ema = jax.jit(make, out_shardings=places)(params)
        return dataclasses.replace(state, params=params, optimizer=optimizer, ema=ema)


def build(
    config: Config, splits: Splits | None = None, devices: list[jax.Device] | None = None
) -> Run:
    """The run on `devices`, by default all there are.

    Raises: ConfigError or DataError for whatever cannot be run, before anything is compiled.
    """
    mesh = make_mesh(config.mesh, devices)
    check_batch_size(
        mesh, config.train.batch_size, config.train.accumulation, 'config.train.batch_size'
    )
    if config.eval.batch_size is not None:
        check_batch_size(mesh, config.eval.batch_size, 1, 'config.eval.batch_size')
    splits = splits or load_data(config.data)
    horizon = _horizon(config, splits)
    task = build_task(config, splits.spec)
    model, settings = build_model(config, splits.spec, task), config.optimizer
    if config.lora is not None:
        settings = lora.freeze(settings, config.lora)
    _check_offload(config, mesh)
    schedule = schedules.build(settings.schedule, settings.learning_rate, horizon)
    params = model.abstract()['params']
    check_parameters(model.axes['params'], params, mesh)
    _check_sequence(model, mesh)
    optimizer = optimizers.build(settings, schedule, params, model.axes['params'], model.scaling)
    if config.precision.moments == 'bfloat16':
        optimizer = moments.in_bfloat16(optimizer, params)
    trained = groups.trained(params, settings.groups, f'{optimizers.WHERE}.groups')
    noise_every = _noise_every(config, horizon)
    recipe = _recipe(config, splits.spec, task, model, optimizer, schedule, trained, noise_every)
    abstract = jax.eval_shape(_init(config, model, optimizer), jax.random.key(0))
    shardings, notes = states.shardings(model, optimizer, abstract, mesh)
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        shardings,
    )
    return Run(config, mesh, splits, horizon, recipe, placed, notes)


def _check_sequence(model: Model, mesh: Mesh) -> None:
    if mesh.shape['context'] == 1:
        return
    if model.sequence is None:
        raise ConfigError(
            f'config.mesh.context: expected 1 for a model that reads no sequence in parallel, got '
            f'{mesh.shape["context"]}'
        )
    below = model.sequence // mesh.shape['context'] * mesh.shape['context']
    lengths = [n for n in (below, below + mesh.shape['context']) if n]
    rows = f', or rows of {" or ".join(map(str, lengths))}'
    check_divides(mesh, 'context', model.sequence, 'positions', rows)


def with_pretrained_shape(config: Config) -> Config:
    """A run that begins from a hub folder or GGUF file has the shape of the model there, but for
    what config.model says. Raises: ConfigError, CheckpointError."""
    if config.init_from is None or not interop.is_pretrained(config.init_from.run):
        return config
    found = interop.open_pretrained(config.init_from.run)
    options = {**found.options, 'vocab_size': found.vocabulary, **config.model.options}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, options=options))


def batch_spec(spec: DataSpec, batch_size: int) -> Batch:
    """A training batch as abstract shapes."""

    def stacked(row: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *row.shape), row.dtype)

    return {
        'inputs': jax.tree.map(stacked, spec.inputs),
        'targets': jax.tree.map(stacked, spec.targets),
        'weights': jax.ShapeDtypeStruct((batch_size,), jnp.float32),
    }


def _init(
    config: Config, model: Model, optimizer: optax.GradientTransformation
) -> Callable[[jax.Array], TrainState]:
    """From a key to a fresh state."""
    has_ema, is_scaled = config.optimizer.ema is not None, config.precision.compute == 'float16'
    has_noise = bool(config.train.noise_scale.amount)
    return partial(states.init, model, optimizer, has_ema, is_scaled, has_noise)


def _check_offload(config: Config, mesh: Mesh) -> None:
    if config.model.options.get('remat') != 'offload':
        return
    memories = [memory.kind for memory in mesh.devices.flat[0].addressable_memories()]
    if HOST_MEMORY not in memories:
        raise ConfigError(
            f"config.model.remat: 'offload' expects devices with {HOST_MEMORY}, got "
            f"{', '.join(memories)}; use 'projections'"
        )


def _horizon(config: Config, splits: Splits) -> Horizon:
    if 'train' not in splits.sources:
        raise DataError('this data has no train split; see config.data.splits')
    rows = len(splits.sources['train'])
    if rows < config.train.batch_size:
        raise DataError(
            f'the train split has {rows} rows, fewer than config.train.batch_size='
            f'{config.train.batch_size}; use a smaller batch'
        )
    horizon = Horizon(config.train.batch_size, rows, splits.spec.tokens)
    steps = horizon.steps(config.train.duration)
    if steps < 1:
        raise ConfigError('config.train: expected at least one step, got 0; raise steps or epochs')
    return Horizon(config.train.batch_size, rows, splits.spec.tokens, steps)


def _noise_every(config: Config, horizon: Horizon) -> int:
    every = horizon.steps(config.train.noise_scale)
    if config.train.noise_scale.amount and not every:
        raise ConfigError(
            f'config.train.noise_scale: expected at least one step of {horizon.total_steps}, got '
            f'{config.train.noise_scale}, which is none; raise it, or set 0 for never'
        )
    return every


def build_task(config: Config, spec: DataSpec) -> Task:
    """The task of the config for such data. Raises: ConfigError."""
    module = components.find('task', config.task.name, 'config.task.name')
    return module.build(components.build_config(module, config.task.options, 'config.task'), spec)


def build_model(config: Config, spec: DataSpec, task: Task) -> Model:
    """The model of the config for such data and task. Raises: ConfigError."""
    module = components.find('model', config.model.name, 'config.model.name')
    options = components.build_config(module, config.model.options, 'config.model')
    if spec.vocab_size and getattr(options, 'vocab_size', spec.vocab_size) is None:
        options = dataclasses.replace(options, vocab_size=spec.vocab_size)  # the data tells
    batch = batch_spec(spec, config.train.batch_size)
    inputs = jax.eval_shape(partial(augment.standardise, spec=spec), batch)['inputs']
    _check_parametrization(config)
    dtype = jnp.dtype(config.precision.compute)
    model = parametrization.build(
        module, options, config.parametrization, inputs, task.outputs, dtype
    )
    return model if config.lora is None else lora.adapt(model, config.lora)


def _check_parametrization(config: Config) -> None:
    name = config.parametrization.name
    if name != 'sp' and (config.lora is not None or config.task.l1 or config.task.l2):
        raise ConfigError(
            f"config.parametrization.name: expected 'sp' with config.lora or penalties of "
            f'config.task, for which the theory here has no rule, got {name!r}'
        )


def _recipe(
    config: Config,
    spec: DataSpec,
    task: Task,
    model: Model,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    trained: Any,
    noise_every: int,
) -> Recipe:
    task.metrics(metric_names(config, task))  # an unknown name is refused now, not after an epoch
    return Recipe(
        model=model,
        forward=_forward(config, task, model),
        task=task,
        optimizer=optimizer,
        schedule=schedule,
        trained=trained,
        standardise=partial(augment.standardise, spec=spec),
        augment=augment.build(config.data.augment, spec),
        train_groups=task.metrics(task.train_metrics),
        accumulation=config.train.accumulation,
        l1=config.task.l1,
        l2=config.task.l2,
        ema=config.optimizer.ema,
        growth_steps=config.precision.growth_steps,
        guard=config.guard,
        noise_every=noise_every,
    )


def _forward(config: Config, task: Task, model: Model) -> Callable[..., Any]:
    if not task.reads_parts:
        return model.apply
    if model.parts is None:
        raise ConfigError(
            f'config.task.chunk: expected a model that gives its read-out apart, got '
            f'{config.model.name}; leave chunk out, or see Model.parts'
        )
    return model.parts


def metric_names(config: Config, task: Task) -> tuple[str, ...]:
    """What evaluation measures beside the loss."""
    return config.eval.metrics or task.default_metrics


def metric_groups(config: Config, task: Task) -> dict[str, metrics.MetricGroup]:
    """The statistics behind them."""
    return task.metrics(metric_names(config, task))
