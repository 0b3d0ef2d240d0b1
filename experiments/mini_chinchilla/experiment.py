"""IsoFLOP curves on characters: five sizes a budget, and the top budget held out."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from bigjax.config import resolve
from bigjax.config_file import run_file
from bigjax.errors import DataError
from bigjax.models.flops import palm
from bigjax.study import jobs, plots, sweep
from bigjax.study.fits import isoflop, table
from bigjax.study.fits.resample import Bootstrap
from bigjax.study.points import Point

HERE = Path(__file__).parent
VOCABULARY = 65
COLUMNS = ('params', 'tokens', 'value', 'flops')
WIDTHS = {
    3e11: (8, 12, 16, 24, 32),
    1e12: (24, 32, 48, 64, 96),
    3e12: (32, 48, 64, 96, 128),
    1e13: (48, 64, 96),
}
"""Of each budget in FLOPs; the last is held out."""


def points(smoke: bool) -> list[Point]:
    budgets = {1e9: (8, 16), 3e9: (8, 16)} if smoke else WIDTHS
    return [_point(budget, width) for budget, widths in budgets.items() for width in widths]


def _point(budget: float, width: int) -> Point:
    """The rate falls as 1 / width, muP's rule for what Adam trains."""
    return {
        'model.width': width,
        'model.heads': max(1, width // 16),
        'optimizer.learning_rate': 0.24 / width,
        'train.steps': round(budget / flops_a_step(width)),
    }


def flops_a_step(width: int) -> int:
    """By PaLM's count; all but the look-up of the embedding are parameters."""
    config = resolve(run_file(HERE / 'config.py', 'get_config').get_config())
    layers, length = config.model.options['layers'], config.data.options['sequence_length']
    parameters = layers * (12 * width**2 + 2 * width) + width + VOCABULARY * width
    return palm(parameters, layers, width, length, length * config.train.batch_size)


def measure(study: Path, smoke: bool, data: Path | None) -> list[dict]:
    """A row a run, and what the fit to all budgets but the top one says of that one.

    data: Tiny Shakespeare, input.txt.
    """
    if smoke:
        data = study / 'text.txt'
        data.write_text('To be, or not to be: that is the question.\n' * 400)
    if data is None:
        raise DataError("expected --data=input.txt, nanoGPT's Tiny Shakespeare; got none")
    overrides = [('data.path', str(data.resolve()))]
    planned = jobs.plan(points(smoke), HERE, overrides)
    rows = sweep.finish(planned, study, slots=2, console=Console())
    runs = [
        {
            'quantity': 'loss',
            'value': row['metrics']['val/loss'],
            'width': row['overrides']['model.width'],
            'params': row['params'],
            'tokens': row['tokens'],
            'flops': row['flops'],
        }
        for row in rows
    ]
    return runs + ([] if smoke else fitted(runs))


def fitted(runs: list[dict]) -> list[dict]:
    """Approach 2 on the lower budgets, and the top one's optimum against what they foretell.

    Intervals are of another measurement, at 95 %: bootstrap over the noise of the runs.
    """
    every = _table(runs)
    top = every.flops > max(WIDTHS) / 2
    fit = isoflop.fit(every.take(~top), Bootstrap(1000, over='noise'))
    measured = isoflop.measure(every)
    rows = [
        {'quantity': 'budgets with an interior minimum', 'value': float(len(measured.flops))},
        {'quantity': 'exponent of N*', 'value': fit.law.a},
    ]
    flops = measured.flops[-1]
    for name, found, foretold in (
        ('N*', measured.params[-1], fit.best_params(flops, noise=True)),
        ('L*', measured.loss[-1], fit.best_loss(flops, noise=True)),
    ):
        low, high = foretold.interval
        rows += [
            {'quantity': f'held-out {name}', 'value': float(found)},
            {'quantity': f'held-out {name}, foretold', 'value': foretold.value},
            {'quantity': f'held-out {name}, low', 'value': low},
            {'quantity': f'held-out {name}, high', 'value': high},
            {'quantity': f'held-out {name} in its interval', 'value': float(low <= found <= high)},
        ]
    return rows


def _table(runs: list[dict]) -> table.Runs:
    columns = {name: np.array([run[name] for run in runs]) for name in COLUMNS}
    return table.runs(columns['params'], columns['tokens'], columns['value'], columns['flops'])


def draw(results: list[dict], figure: Figure) -> None:
    figure.set_size_inches(8.4, 3.6)
    left, right = figure.subplots(1, 2)
    runs = [row for row in results if row['quantity'] == 'loss']
    budgets = sorted({float(f'{run["flops"]:.0e}') for run in runs})
    for budget, colour in zip(budgets, plots.GROUP_COLORS, strict=False):
        mine = [run for run in runs if float(f'{run["flops"]:.0e}') == budget]
        params, losses = [run['params'] for run in mine], [run['value'] for run in mine]
        left.plot(params, losses, 'o-', color=colour, label=f'{budget:.0e} FLOPs', markersize=4)
    left.set(title='validation loss, nats', xlabel='parameters')
    plots.log_scale(left, 'x')
    left.legend()
    values = {row['quantity']: row['value'] for row in results if row['quantity'] != 'loss'}
    if 'held-out N*' not in values:  # a smoke test
        return
    minima = isoflop.measure(_table(runs))
    right.plot(minima.flops[:-1], minima.params[:-1], 'o', color=plots.BLUE, label='fitted')
    right.plot(minima.flops[-1:], minima.params[-1:], 's', color=plots.ORANGE, label='held out')
    foretold, low, high = (values[f'held-out N*, {name}'] for name in ('foretold', 'low', 'high'))
    ends = [[foretold - low], [high - foretold]]
    at = minima.flops[-1:]
    right.errorbar(at, [foretold], ends, fmt='x', color=plots.GREY, capsize=4, label='foretold')
    right.set(title='best number of parameters, 95 %', xlabel='FLOPs')
    plots.log_scale(right, 'x', 'y')
    right.legend(loc='upper left')
