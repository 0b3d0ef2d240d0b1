"""Whether a config computes on every mesh what it computes on one device: its first steps on each.

All begin with the state of one device and are fed the same rows. Differences are relative:

    init        parameters that the config's own mesh and `fsdp` make of the seed, to their norm
    loss        of each step
    gradient    of the first step, a parameter at a time: to its norm, or to `FLOOR` of the norm of
                the whole gradient where that is more; some are zero but for rounding. Below
                float32, twice what one device is off by from float32 makes the tolerance
    parameters  after the last step, to the way that they went on one device

An optimizer such as Adam divides a gradient by its size, so that what is rounding in one of nearly
zero decides on a whole step. Parameters are therefore compared in those elements whose gradients
agreed to a tenth of the tolerance at every step, and beyond the last place of float32: does the
optimizer do the same with the same?
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from bigjax import trees
from bigjax.config import Config, MeshConfig, Preset, with_values
from bigjax.data import batches
from bigjax.errors import EXIT_DONE, EXIT_FAILED, ConfigError, EnvironmentProblem
from bigjax.sharding.mesh import AXES, mesh_sizes, replicated
from bigjax.sharding.rules import PARAMETER_RULES
from bigjax.train.build import Run, build, with_pretrained_shape
from bigjax.train.state import TrainState
from bigjax.train.step import train_step

KINDS = ('init', 'loss', 'gradient', 'parameters')
ROW = '{:38}{:>10}{:>10}{:>10}{:>12}  {}'
ROWS = 2
"""A device, at least: one would be its own mean."""
FLOOR = 1e-3
TOLERANCES = {'float32': 1e-4, 'bfloat16': 1e-2, 'float16': 1e-2}
"""By compute dtype."""


class Trace(NamedTuple):
    """losses: one a step. gradients: by parameter, one dict a step. start, end: parameters."""

    losses: list[float]
    gradients: list[dict[str, np.ndarray]]
    start: dict[str, np.ndarray]
    end: dict[str, np.ndarray]


class Difference(NamedTuple):
    """where: the worst parameter, or step."""

    value: float
    where: str


def check(config: Config, steps: int, tolerance: float | None, console: Console) -> int:
    """Prints a row a mesh: 0, or 1 if one differs by more than the tolerance.

    Raises: ConfigError or DataError for what does not run on one device either;
        EnvironmentProblem where there is only one.
    """
    devices = jax.devices()
    if len(devices) == 1:
        raise EnvironmentProblem(
            'check-mesh needs several devices, this machine has one; JAX_PLATFORMS=cpu makes eight '
            'virtual ones'
        )
    config = with_pretrained_shape(config)
    size = ROWS * len(devices) * config.train.accumulation
    config = with_values(config, **{'train.batch_size': size, 'eval.batch_size': None})
    tolerance = TOLERANCES[config.precision.compute] if tolerance is None else tolerance
    alone = build(dataclasses.replace(config, mesh=MeshConfig()), devices=devices[:1])
    state = alone.init()
    expected = follow(alone, state, steps)
    noise = rounding(alone, expected)
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    say(
        f'{steps} steps of {size} rows, whatever config.train.batch_size, on {len(devices)} x '
        f'{devices[0].device_kind} against one; tolerance {tolerance:g} '
        f'({config.precision.compute})'
    )
    say(ROW.format('mesh', *KINDS, 'worst'))
    failed: list[tuple[float, str]] = []
    compared = 0
    for name, mesh in meshes(alone, config.mesh, len(devices)).items():
        try:
            run = build(dataclasses.replace(config, mesh=mesh), alone.splits)
        except ConfigError as error:
            say(f'{name}: skipped: {error}', style='yellow')
            continue
        makes = name.endswith(('(config)', '(fsdp)'))  # most of the time is compiling that
        with jax.set_mesh(run.mesh):
            own = run.init() if makes else state
        found = compare(expected, follow(run, own, steps), tolerance, noise)
        worst, compared = max(found.values()), compared + 1
        good = worst.value <= tolerance
        init, *numbers = (f'{difference.value:.1e}' for difference in found.values())
        cells = (name, init if makes else '', *numbers, worst.where)
        say(ROW.format(*cells), style=None if good else 'red')
        if not good:
            failed.append((worst.value, f'{name}, {worst.where}'))
    if not failed:
        say(f'{compared} meshes compute what one device does')
        return EXIT_DONE if compared else EXIT_FAILED
    value, where = max(failed)
    say(
        f'{len(failed)} of {compared} meshes differ from one device, most by {value:.2g}: {where}',
        style='red',
    )
    return EXIT_FAILED


def follow(run: Run, state: TrainState, steps: int) -> Trace:
    """The first steps of a run from `state`, by the training step itself."""
    recipe = dataclasses.replace(run.recipe, optimizer=_keeping(run.recipe.optimizer))
    places = run.shardings
    places = dataclasses.replace(places, optimizer=_Kept(places.params, places.optimizer))
    step = jax.jit(partial(train_step, recipe), out_shardings=(places, replicated(run.mesh)))
    size, seed, source = run.config.train.batch_size, run.config.seed, run.splits.sources['train']
    losses, gradients = [], []
    state = jax.device_put(state, run.shardings)
    with jax.set_mesh(run.mesh):
        start = _by_name(state.params)
        zeros = jax.jit(partial(jax.tree.map, jnp.zeros_like), out_shardings=places.params)
        kept = _Kept(zeros(state.params), state.optimizer)
        state = dataclasses.replace(state, optimizer=kept)
        for index in range(steps):
            batch = batches.train_batch(source, seed, index, size, slice(0, size))
            state, logged = step(state, batches.to_device(batch, run.batch_sharding, size))
            losses.append(float(logged['loss']))
            gradients.append(_by_name(state.optimizer.gradients))
        return Trace(losses, gradients, start, _by_name(state.params))


def rounding(alone: Run, expected: Trace) -> dict[str, float]:
    """By parameter, how far the first gradient is from that of float32."""
    config = alone.config
    if config.precision.compute == 'float32' or not _norm(*expected.gradients[0].values()):
        return {}
    config = with_values(config, **{'precision.compute': 'float32'})
    exact = build(config, alone.splits, list(alone.mesh.devices.flat))
    gradients = follow(exact, exact.init(), 1).gradients[0]
    return {name: _norm(gradients[name] - grad) for name, grad in expected.gradients[0].items()}


def compare(
    expected: Trace, found: Trace, tolerance: float, noise: Mapping[str, float]
) -> dict[str, Difference]:
    """The worst difference of each kind; noise as `rounding` gives it."""
    surely = tolerance / 10
    # a step that a loss scale skipped has left the zeros of before
    first = next((n for n, kept in enumerate(expected.gradients) if _norm(*kept.values())), 0)
    gradients, whole = expected.gradients[first], _norm(*expected.gradients[first].values())
    start, end = expected.start, expected.end
    losses = enumerate(zip(expected.losses, found.losses, strict=True), 1)

    def worst(differences: dict[str, float]) -> Difference:
        # nan is the worst of all
        return max(Difference(math.inf if v != v else v, name) for name, v in differences.items())

    def gradient(name: str) -> float:
        scale = max(_norm(gradients[name]), FLOOR * whole)
        if name in noise and tolerance:
            scale = max(scale, 2 * noise[name] / tolerance)
        return _ratio(found.gradients[first][name] - gradients[name], scale)

    def parameter(name: str) -> float:
        pairs = zip(expected.gradients, found.gradients, strict=True)
        sure = np.all([abs(a[name] - b[name]) <= surely * abs(a[name]) for a, b in pairs], axis=0)
        # a last place is lost at any step, and much where the learning rate is warming up
        rounding = len(expected.losses) * np.spacing(abs(end[name]))
        beyond = np.maximum(abs(found.end[name] - end[name]) - rounding, 0)
        return _ratio(beyond[sure], _norm((end[name] - start[name])[sure]))

    return {
        'init': worst(
            {name: _ratio(found.start[name] - start[name], _norm(start[name])) for name in start}
        ),
        'loss': worst({f'loss of step {n}': _ratio(b - a, abs(a)) for n, (a, b) in losses}),
        'gradient': worst({f'gradient of {name}': gradient(name) for name in start}),
        'parameters': worst({name: parameter(name) for name in start}),
    }


def meshes(run: Run, own: MeshConfig, num_devices: int) -> dict[str, MeshConfig]:
    """By name: the config's `own`, one a preset, and products of axes; only of axes that split the
    batch or a parameter of the `run`'s model."""
    names = {name for axes in jax.tree.leaves(run.recipe.model.axes['params']) for name in axes}
    useful = {'slice', 'data', 'fsdp'}.union(*(PARAMETER_RULES.get(name, ()) for name in names))
    if run.recipe.model.sequence is not None:
        useful.add('context')
    presets = [(f' ({preset})', MeshConfig(preset=preset)) for preset in get_args(Preset)]
    products = [('', MeshConfig(**sizes)) for sizes in _products(useful, num_devices)]
    found: dict[tuple[str, ...], tuple[str, MeshConfig]] = {}
    for note, mesh in [(' (config)', own), *presets, *products]:
        sizes = mesh_sizes(mesh, num_devices)
        split = tuple(f'{axis}={size}' for axis, size in sizes.items() if size > 1)
        if note == ' (config)' or all(sizes[axis] == 1 or axis in useful for axis in AXES):
            found.setdefault(split, (' '.join(split) + note, mesh))
    return dict(found.values())


def _products(axes: set[str], num_devices: int) -> Iterator[dict[str, Any]]:
    """Three axes at a time, and two slices beside each that splits more than the batch."""
    inside = [axis for axis in AXES if axis in axes - {'slice'}]
    slices = (('slice', axis) for axis in inside if axis != 'data')
    for some in itertools.chain(itertools.combinations(inside, 3), slices):
        yield from _spread(some, num_devices)


def _spread(axes: tuple[str, ...], num_devices: int) -> Iterator[dict[str, Any]]:
    """The devices over the axes, more to the last; nothing where an axis would get only one."""
    sizes = {'data': 1, **dict.fromkeys(axes, 1)}
    for factor in reversed(_prime_factors(num_devices)):
        sizes[min(reversed(axes), key=lambda axis: sizes[axis])] *= factor
    if all(sizes[axis] > 1 for axis in axes):
        yield sizes


def _prime_factors(number: int) -> list[int]:
    factor = next((n for n in range(2, number + 1) if number % n == 0), None)
    return [] if factor is None else [factor, *_prime_factors(number // factor)]


class _Kept(NamedTuple):
    gradients: Any
    inner: Any


def _keeping(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer, with the gradients that it was last given in its state."""

    def update(gradients: Any, state: _Kept, params: Any = None) -> tuple[Any, _Kept]:
        updates, inner = optimizer.update(gradients, state.inner, params)
        return updates, _Kept(gradients, inner)

    return optax.GradientTransformation(
        lambda params: _Kept(params, optimizer.init(params)), update
    )


def _by_name(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.device_get(jax.tree.leaves(tree))
    return dict(zip(trees.names(tree), leaves, strict=True))


def _norm(*arrays: np.ndarray) -> float:
    return math.sqrt(sum(float(np.sum(np.square(array, dtype=np.float64))) for array in arrays))


def _ratio(difference: Any, scale: float) -> float:
    size = _norm(np.asarray(difference))
    return size / scale if scale else math.inf * size if size else 0.0
