"""From budgets of FLOPs to runs of real shapes, and from their losses to the next run.

Runs warm up, are stable and decay (Hu et al. 2024, section 4); those of one shape share a trunk at
a constant rate, and each budget is a leaf that decays from it, bit for bit what it would be had it
run alone.
"""

import pprint
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bigjax import schema
from bigjax.config import Config, with_values
from bigjax.config_file import load
from bigjax.durations import Duration
from bigjax.errors import ConfigError, DataError
from bigjax.study import jobs, ledger
from bigjax.study.fits import table
from bigjax.study.points import Point, read
from bigjax.study.shapes import Rung, Shapes

DECAY = 5  # a leaf is a fifth of its run
SCHEDULE, INIT = 'optimizer.schedule', 'init_from'
LEAF = 'warmup_stable_decay'


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


def shortage(rungs: Sequence[Rung]) -> str | None:
    """Why the top budget could not be held out from a fit, if so."""
    top = max(rung.budget for rung in rungs)
    sizes = {rung.shape.params for rung in rungs if rung.budget < top}
    if len(sizes) >= 3:
        return None
    return (
        f'only {len(sizes)} sizes below the top budget, and a fit that holds it out needs 3: '
        'add budgets, or values of --tokens_per_param'
    )


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
