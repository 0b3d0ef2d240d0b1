"""From budgets of FLOPs to runs of real shapes, and from their losses to the next run.

A rung is a shape trained for a budget. Shapes keep the proportions of the config that they are
made of; steps fill the budget. Runs warm up, are stable and decay (Hu et al. 2024, section 4);
those of one shape share a trunk at a constant rate, and each budget is a leaf that decays from it,
bit for bit what it would be had it run alone.
"""

import pprint
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from bigjax import schema, trees
from bigjax.config import Config, load, with_values
from bigjax.durations import Duration
from bigjax.errors import ConfigError, DataError
from bigjax.study import jobs, ledger
from bigjax.study.fits import table
from bigjax.study.points import Point, read
from bigjax.train.build import build
from bigjax.train.model_flops import model_flops

TOLERANCE = 0.01  # of a budget
DECAY = 5  # a leaf is a fifth of its run
LARGEST = 4096  # multiples of the smallest width that are looked at
SCHEDULE, INIT = 'optimizer.schedule', 'init_from'
LEAF = 'warmup_stable_decay'


class Shape(NamedTuple):
    """Fields of the model, and what a config of that shape counts: FLOPs as the ledger does."""

    fields: Mapping[str, int]
    params: int
    flops_a_step: int
    tokens_a_step: int


class Rung(NamedTuple):
    """A shape and how long it trains."""

    budget: float
    shape: Shape
    steps: int

    @property
    def flops(self) -> int:
        """Of all steps; within a hundredth of the budget."""
        return self.steps * self.shape.flops_a_step

    @property
    def tokens(self) -> int:
        """Of all steps."""
        return self.steps * self.shape.tokens_a_step


class Shapes:
    """The shapes of a config's proportions, by multiples of the smallest width."""

    def __init__(self, config: Config) -> None:
        """Raises: ConfigError unless the model is a transformer that says its shape."""
        options = config.model.options
        missing = [name for name in ('layers', 'width', 'heads') if name not in options]
        if config.model.name != 'transformer' or missing:
            raise ConfigError(
                'a ladder expects config.model to be a transformer with layers, width and heads, '
                f'got {config.model.name} {"without " + missing[0] if missing else ""}'
            )
        self._config = config
        self._splits = build(config).splits
        self.at = cache(self._at)

    def _at(self, multiple: int) -> Shape:
        fields = _fields(self._config.model.options, multiple)
        values = {f'model.{name}': value for name, value in fields.items()}
        run = build(with_values(self._config, **values), self._splits)
        tokens = run.splits.spec.tokens
        if tokens is None:
            raise ConfigError('a ladder expects data with tokens; config.data has none')
        size = run.config.train.batch_size
        flops = model_flops(run).a_step
        return Shape(values, trees.count(run.abstract.params), flops, size * tokens)

    def rung(self, budget: float, tokens_per_param: float) -> Rung:
        """The shape whose D / N is nearest to that, in its logarithm. Raises: ConfigError."""

        def too_long(multiple: int) -> float:
            shape = self.at(multiple)
            tokens = budget / shape.flops_a_step * shape.tokens_a_step
            return float(np.log(tokens / shape.params / tokens_per_param))

        return self._filled(budget, self._nearest(too_long))

    def sized(self, budget: float, params: float) -> Rung:
        """The shape whose N is nearest to that. Raises: ConfigError."""
        return self._filled(
            budget, self._nearest(lambda k: float(np.log(params / self.at(k).params)))
        )

    def _nearest(self, falling: Any) -> Shape:
        """Where a falling function of the multiple is nearest to 0."""
        low, high = 1, 2
        while falling(high) > 0:
            if high >= LARGEST:
                raise ConfigError(
                    f'a ladder: no width up to {LARGEST} heads is enough; lower budgets'
                )
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if falling(middle) > 0 else (low, middle)
        return self.at(min((low, high), key=lambda multiple: abs(falling(multiple))))

    def _filled(self, budget: float, shape: Shape) -> Rung:
        steps = round(budget / shape.flops_a_step)
        if abs(steps * shape.flops_a_step / budget - 1) > TOLERANCE:
            raise ConfigError(
                f'budget {budget:.3g}: steps of {shape.flops_a_step:.3g} FLOPs do not come within '
                f'{TOLERANCE:.0%} of it; lower train.batch_size, or raise the budget'
            )
        return Rung(budget, shape, steps)


def _fields(options: Mapping[str, Any], multiple: int) -> dict[str, int]:
    """The proportions of `options` at that multiple of a head, or of a group of heads."""
    layers, width, heads = options['layers'], options['width'], options['heads']
    group = heads // options['kv_heads'] if options.get('kv_heads') else 1
    unit = width * group // heads
    found = {
        'layers': max(1, round(layers * multiple * unit / width)),
        'width': multiple * unit,
        'heads': multiple * group,
    }
    if options.get('kv_heads'):
        found['kv_heads'] = multiple
    if options.get('mlp'):
        found['mlp'] = round(options['mlp'] * multiple * unit / width)
    return found


def climb(
    config: Config, budgets: Sequence[float], tokens_per_param: Sequence[float]
) -> list[Rung]:
    """A rung for each budget and D / N, equal ones once. Raises: ConfigError."""
    for name, values in (('budgets', budgets), ('tokens_per_param', tokens_per_param)):
        if not values or not all(np.isfinite(value) and value > 0 for value in values):
            raise ConfigError(f'--{name}: expected finite numbers above 0, got {list(values)}')
    shapes = Shapes(config)
    found = (shapes.rung(budget, ratio) for budget in budgets for ratio in tokens_per_param)
    return list({(rung.budget, rung.shape.params): rung for rung in found}.values())


def points(config: Config, rungs: Sequence[Rung], folder: Path, workdir: Path) -> list[Point]:
    """The runs of a ladder, in an order in which each begins from what ran before.

    folder: where `config.py` is written; workdir: of the sweep.
    """
    found: list[Point] = []
    for fields in {tuple(rung.shape.fields.items()): None for rung in rungs}:
        mine = [rung for rung in rungs if tuple(rung.shape.fields.items()) == fields]
        found += _tree(config, sorted(mine, key=lambda rung: rung.steps), folder, workdir)
    return found


def _tree(config: Config, rungs: Sequence[Rung], folder: Path, workdir: Path) -> list[Point]:
    """A trunk in pieces, and a leaf for each budget; one budget alone needs no trunk."""
    warmup = _warmup(config, rungs[0].steps)
    found: list[Point] = []
    begin: Point = {}
    for rung in rungs:
        decay = max(1, round(rung.steps / DECAY))
        shared = dict(rung.shape.fields)
        if len(rungs) > 1:
            trunk = {**shared, **begin, 'train.steps': rung.steps - decay}
            trunk |= {f'{SCHEDULE}.name': 'constant', f'{SCHEDULE}.warmup': warmup}
            found.append(trunk)
            (job,) = jobs.plan([trunk], folder)
            begin = {f'{INIT}.run': str(job.folder(workdir)), f'{INIT}.whole': True}
        leaf = {f'{SCHEDULE}.name': LEAF, f'{SCHEDULE}.warmup': warmup, f'{SCHEDULE}.decay': decay}
        found.append({**shared, **begin, 'train.steps': rung.steps, **leaf})
    return found


def _warmup(config: Config, steps: int) -> int | str:
    """Of all runs of a shape: a percentage is one of the shortest."""
    warmup: Duration = config.optimizer.schedule.warmup
    return max(1, round(warmup.amount / 100 * steps)) if warmup.unit == '%' else str(warmup)


def write(config: Config, rungs: Sequence[Rung], folder: Path, workdir: Path) -> None:
    """config.py and sweep.py of a study. Raises: ConfigError where there is one already."""
    if (folder / 'sweep.py').exists():
        raise ConfigError(f'{folder} has a sweep.py; name another folder, or fit it with --fit')
    folder.mkdir(parents=True, exist_ok=True)
    plain = config_without_schedule(config)
    write_config(plain, folder / 'config.py', 'What the runs of this ladder share.')
    found = pprint.pformat(points(plain, rungs, folder, workdir), width=98, sort_dicts=False)
    text = f'"""Runs of a scaling ladder, written by `bigjax ladder`."""\n\nPOINTS = {found}\n\n\n'
    (folder / 'sweep.py').write_text(text + 'def points():\n    return POINTS\n')


def config_without_schedule(config: Config) -> Config:
    """With the warm-up, but no shape of the rate: each run has its own."""
    warmup = str(config.optimizer.schedule.warmup)
    return with_values(config, **{SCHEDULE: {'name': 'constant', 'warmup': warmup}})


def write_config(config: Config, path: Path, about: str) -> None:
    """A config file with every field as it is."""
    values = pprint.pformat(schema.to_dict(config), width=95, sort_dicts=False)
    path.write_text(f'"""{about}"""\n\n\ndef get_config():\n    return {values}\n')


def show(rungs: Sequence[Rung], console: Console) -> None:
    """A line a rung."""
    found = Table(box=None, pad_edge=False, header_style='bold')
    for name in ('budget', 'FLOPs', 'of it', 'width', 'layers', 'N', 'D', 'D / N', 'steps'):
        found.add_column(name, justify='right', no_wrap=True)
    for rung in rungs:
        fields, params = rung.shape.fields, rung.shape.params
        found.add_row(
            f'{rung.budget:.3g}',
            f'{rung.flops:.4g}',
            f'{rung.flops / rung.budget - 1:+.2%}',
            f'{fields["model.width"]}',
            f'{fields["model.layers"]}',
            f'{params:,}',
            f'{rung.tokens:.4g}',
            f'{rung.tokens / params:.3g}',
            f'{rung.steps:,}',
        )
    console.print(found)


def results(folder: Path, workdir: Path) -> table.Runs:
    """The leaves that have a result. Raises: DataError."""
    planned = jobs.plan(read(folder / 'sweep.py', smoke=False), folder)
    leaves = {job.id for job in planned if job.overrides[f'{SCHEDULE}.name'] == LEAF}
    rows = [row for key, row in ledger.read(workdir).items() if key in leaves]
    done = [row for row in rows if row['event'] == 'finished']
    if not done:
        raise DataError(f'{workdir}: none of {len(leaves)} runs is done; bigjax sweep {folder}')
    params, tokens, flops = (
        np.array([row[name] for row in done], float) for name in ('params', 'tokens', 'flops')
    )
    loss = np.array([row['metrics'].get('val/loss', np.nan) for row in done])
    return table.runs(params, tokens, loss, flops, done[0]['formula'])._replace(
        skipped=len(leaves) - len(done)
    )


def next_config(folder: Path, budget: float, params: float) -> tuple[Config, Rung]:
    """The config of the best size for a budget. Raises: ConfigError."""
    config = load(str(folder / 'config.py'))
    rung = Shapes(config).sized(budget, params)
    values = dict(rung.shape.fields) | {'train.steps': rung.steps}
    decay = max(1, round(rung.steps / DECAY))
    schedule = {'name': LEAF, 'warmup': _warmup(config, rung.steps), 'decay': decay}
    return with_values(config, **values, **{SCHEDULE: schedule}), rung
