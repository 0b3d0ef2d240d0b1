"""The coordinate check (Yang & Hu et al. 2021, appendix D.1): do activations move as far in a wide
model as in a narrow one?

Models that differ in size alone take a few steps on the same batches. Of what each layer gives, on
the first batch, the mean |x - x at init| is a power of the size; under muP that power is 0. (The
mean |x| itself says less: logits rightly shrink with the width before the first step.) A read-out
of its own starts at zero (ibid., D.2): random, it turns what moves below it into chance motion of
the logits, which falls as 1 / sqrt(width) and hides the power.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from bigjax import trees
from bigjax.analysis.activations import watch
from bigjax.config import Config, with_values
from bigjax.data import batches
from bigjax.data.load import load as load_data
from bigjax.errors import ConfigError
from bigjax.optim.parametrization import label
from bigjax.study import ledger, plots
from bigjax.train.build import Run, build
from bigjax.train.writers import replace_file

TOLERANCE = 0.1
"""Of the slopes of a model that is parametrized well."""
SIZES = (2, 4, 8, 16)
"""Times the base model, where no widths are asked for: in narrow ones chance is steep, too."""
LAYERS = r'^(?!.*(Dropout|StochasticDepth)_\d+$)'
LAST_BLOCK = 'last block'
STREAM = (LAST_BLOCK, 'final_norm', 'output')
"""What is compared over depths: the other names depend on the depth."""

Row = dict[str, Any]
Slopes = dict[str, dict[int, float]]


class Verdict(NamedTuple):
    """The steepest slope after the first step or any later one, and where."""

    name: str
    step: int
    slope: float

    @property
    def passed(self) -> bool:
        return abs(self.slope) <= TOLERANCE


def widened(
    config: Config, widths: Sequence[int] = (), fields: Sequence[str] = ()
) -> dict[int, Config]:
    """The config at each width: the fields of `parametrization.base`, grown in proportion.

    A width is that of the largest number among them; none given are SIZES times the base's. fields:
    dotted fields that are set to the width instead.

    Raises: ConfigError where there is no base, or a field of it comes out broken.
    """
    if fields:
        return {w: _with(config, dict.fromkeys(fields, w)) for w in _sizes(widths)}
    base = dict(config.parametrization.base)
    if not base:
        raise ConfigError(
            'config.parametrization.base: expected the fields of the model that make it wider, '
            "such as {'width': 64, 'heads': 1}, got none; or name one with --field=model.width"
        )
    unit = max(max(value) if isinstance(value, Sequence) else value for value in base.values())
    sizes = _sizes(widths or [unit * size for size in SIZES])
    return {
        w: _with(config, {f'model.{k}': _grown(k, v, w, unit) for k, v in base.items()})
        for w in sizes
    }


def deepened(config: Config, depths: Sequence[int]) -> dict[int, Config]:
    """The config at each number of layers."""
    return {layers: _with(config, {'model.layers': layers}) for layers in _sizes(depths)}


def measure(
    configs: Mapping[int, Config], steps: int, seeds: int, told: Callable[[str], None] = print
) -> list[Row]:
    """A row for each size, seed, step (0 is before the first) and name: `mean` of |x| and `delta`,
    the mean of |x - x at init|."""
    splits = load_data(next(iter(configs.values())).data)
    rows = []
    for size, config in configs.items():
        trained = _trainer(build(config, splits), steps)
        for seed in range(seeds):
            for step, found in enumerate(trained(seed)):
                rows += [
                    {'size': size, 'seed': seed, 'step': step, 'name': name}
                    | {'mean': values['mean'], 'delta': values['delta']}
                    for name, values in found.items()
                ]
        told(f'{size}: {seeds} seeds of {steps} steps')
    return rows


def slopes(rows: Iterable[Row], names: Sequence[str] = ()) -> Slopes:
    """Of the logarithm of delta against that of the size, by name and step; over all seeds.

    names: only these, where a model has them. What never moves, at any size, has a slope of 0.
    """
    points: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for row in rows:
        if row['step'] and (not names or row['name'] in names):
            at = points.setdefault(row['name'], {}).setdefault(row['step'], [])
            at.append((row['size'], row['delta']))
    return {
        name: {step: _slope(found) for step, found in by_step.items()}
        for name, by_step in points.items()
    }


def judge(found: Slopes) -> Verdict:
    """The steepest of all; a slope that is not finite is steeper than any."""
    every = [Verdict(name, *pair) for name, by_step in found.items() for pair in by_step.items()]
    return max(every, key=lambda v: abs(v.slope) if math.isfinite(v.slope) else math.inf)


def check(
    configs: Mapping[int, Config],
    steps: int,
    seeds: int,
    out: Path,
    console: Console,
    names: Sequence[str] = (),
) -> bool:
    """Measures, writes coordinates.csv and coordinates.png into `out`, shows the slopes; whether
    they are flat."""
    rows = measure(configs, steps, seeds, lambda line: console.print(line, highlight=False))
    found = slopes(rows, names)
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / 'coordinates.csv', ledger.to_csv(rows).encode())
    plots.save(draw(rows, list(found)), out / 'coordinates.png')
    table = Table('slope of the change', *(f'step {step}' for step in range(1, steps + 1)))
    for name, by_step in found.items():
        table.add_row(name, *(f'{slope:+.2f}' for slope in by_step.values()))
    console.print(table)
    verdict = judge(found)
    word = 'flat' if verdict.passed else 'NOT flat'
    console.print(
        f'{word}: the steepest slope is {verdict.slope:+.3f}, of {verdict.name} after step '
        f'{verdict.step}; up to {TOLERANCE} is flat; {out / "coordinates.png"}',
        highlight=False,
        soft_wrap=True,
    )
    return verdict.passed


@plots.styled
def draw(rows: Sequence[Row], names: Sequence[str]) -> Figure:
    """The change of each named activation against the size, a line a step, in panels."""
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.1 * lines + 0.3))
    panels = figure.subplots(lines, columns, sharex=True, squeeze=False)
    steps = sorted({row['step'] for row in rows if row['step']})
    sizes = sorted({row['size'] for row in rows})
    for name, ax in zip(names, panels.flat, strict=False):
        for index, step in enumerate(steps):
            values = [_mean(rows, name, step, size) for size in sizes]
            shade = 0.25 + 0.75 * (index + 1) / len(steps)
            ax.plot(sizes, values, color=plots.BLUE, alpha=shade, marker='.', label=f'{step}')
        ax.set_title(name, fontsize=8)
        plots.log_scale(ax, 'x')
        if any(row['delta'] > 0 for row in rows if row['name'] == name):
            plots.log_scale(ax, 'y')
        ax.tick_params(labelsize=7, which='both')
        ax.set_xticks(sizes, list(map(str, sizes)))
        ax.set_xticks([], minor=True)
    for ax in panels.flat[len(names) :]:
        ax.set_visible(False)
    panels[0, 0].legend(title='step', fontsize=7)
    figure.supylabel('mean |x - x at init|', fontsize=9)
    return figure


def _trainer(run: Run, steps: int) -> Callable[[int], list[dict[str, dict[str, float]]]]:
    """From a seed to mean and delta by name, before the first step and after each."""
    model, recipe, size = run.recipe.model, run.recipe, run.config.train.batch_size
    source = run.splits.sources['train']
    last_block = f'block_{run.config.model.options.get("layers", 0) - 1}'
    renamed = {'': 'output', last_block: LAST_BLOCK}

    def batch(seed: int, step: int) -> Any:
        rows = batches.train_batch(source, seed, step, size, slice(0, size))
        return batches.to_device(rows, run.batch_sharding, size)

    @jax.jit
    def see(params: Any, collections: Any, batch: Any) -> dict[str, jax.Array]:
        batch = recipe.standardise(batch)
        if recipe.task.corrupt is not None:
            batch = recipe.task.corrupt(jax.random.key(0), batch)
        variables = {'params': params, **collections}
        # As in training: averages that a batch norm keeps for evaluation lag behind.
        as_in_training = {'train': True, 'rngs': {'dropout': jax.random.key(0)}}
        found = watch(model, variables, batch['inputs'], LAYERS, **as_in_training)
        return {renamed.get(name, name): x.astype(jnp.float32) for name, x in found.items()}

    @jax.jit
    def compare(now: dict[str, jax.Array], first: dict[str, jax.Array]) -> Any:
        def of(x: jax.Array, start: jax.Array) -> dict[str, jax.Array]:
            return {'mean': jnp.abs(x).mean(), 'delta': jnp.abs(x - start).mean()}

        return jax.tree.map(of, now, first)

    @partial(jax.jit, out_shardings=run.shardings.params)
    def silent(params: Any) -> Any:
        labels = trees.map_with_name(label, params, model.axes['params'])
        return jax.tree.map(lambda p, kind: 0 * p if kind == 'output' else p, params, labels)

    step_function = run.jitted_step()

    def trained(seed: int) -> list[dict[str, dict[str, float]]]:
        with jax.set_mesh(run.mesh):
            state, probe = run.init(seed), batch(seed, 0)
            state = dataclasses.replace(state, params=silent(state.params))
            first = see(state.params, state.collections, probe)
            found = [compare(first, first)]
            for step in range(steps):
                state, _ = step_function(state, batch(seed, step))
                found.append(compare(see(state.params, state.collections, probe), first))
        return jax.tree.map(float, jax.device_get(found))

    return trained


def _slope(points: Sequence[tuple[int, float]]) -> float:
    sizes, deltas = np.array(points, np.float64).T
    if not deltas.any():
        return 0.0
    with np.errstate(divide='ignore'):
        logs = np.log(deltas)
    if not np.isfinite(logs).all():
        return math.nan
    return float(np.polyfit(np.log(sizes), logs, 1)[0])


def _mean(rows: Sequence[Row], name: str, step: int, size: int) -> float:
    deltas = [
        row['delta']
        for row in rows
        if (row['name'], row['step'], row['size']) == (name, step, size)
    ]
    return float(np.mean(deltas)) if deltas else math.nan


def _with(config: Config, fields: Mapping[str, Any]) -> Config:
    try:
        return with_values(config, **fields)
    except KeyError as error:
        raise ConfigError(f'--field: config has no section {error}, got {list(fields)}') from None


def _sizes(sizes: Sequence[int]) -> list[int]:
    if len(set(sizes)) < 2 or min(sizes) < 1:
        raise ConfigError(f'--widths or --depths: expected two sizes or more, got {list(sizes)}')
    return sorted(set(sizes))


def _grown(key: str, value: Any, width: int, unit: int) -> Any:
    if isinstance(value, Sequence):
        return [_grown(key, each, width, unit) for each in value]
    if not isinstance(value, int) or value * width % unit:
        raise ConfigError(
            f'config.parametrization.base.{key}: expected a whole number at width {width}, got '
            f'{value} * {width} / {unit}; choose multiples of {unit}'
        )
    return value * width // unit
