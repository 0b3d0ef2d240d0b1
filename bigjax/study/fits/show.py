"""A fit as text, as JSON and as figures."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bigjax.errors import EnvironmentProblem
from bigjax.study.fits import plots
from bigjax.study.fits.held_out import Tested
from bigjax.study.fits.result import LEVEL, Interval, Prediction
from bigjax.study.fits.table import Runs, budgets
from bigjax.study.plots import save

BEYOND = (1.0, 10.0, 100.0)  # times the largest budget, where the optimum is told


def targets(tested: Tested) -> list[float]:
    """Budgets at which the optimum is told."""
    runs = tested.seen if tested.held is None else tested.held
    return [float(runs.flops.max()) * factor for factor in BEYOND]


def to_dict(tested: Tested) -> dict[str, Any]:
    """All that `show` prints, and residuals; numbers that are not finite are None."""
    fit = tested.fit
    found = {
        'method': fit.method,
        'status': fit.status,
        'hit_bounds': list(fit.hit_bounds),
        'objective': fit.objective,
        'condition_number': fit.condition_number,
        'runs': len(tested.seen.loss),
        'skipped': tested.seen.skipped,
        'budgets': [float(f) for f in budgets(tested.seen.flops)[0]],
        'flops_convention': tested.seen.convention,
        'flops_per_param_token': tested.seen.cost,
        'parameters': {
            name: _with(Prediction(value, fit.interval(name)))
            for name, value in fit.parameters.items()
        },
        'bootstrap': {
            'samples': _samples(tested),
            'failed': fit.failed,
            'level': LEVEL,
        },
        'optimum': [
            {
                'flops': flops,
                'params': _with(fit.best_params(flops)),
                'tokens': _with(fit.best_tokens(flops)),
                'loss': _with(fit.best_loss(flops)),
            }
            for flops in targets(tested)
        ],
        'held_out': [
            {
                'flops': miss.flops,
                'quantity': miss.quantity,
                'predicted': _with(miss.predicted),
                'measured': miss.measured,
                'relative_miss': miss.relative,
                'covered': miss.covered,
            }
            for miss in tested.misses
        ],
        'notes': list(tested.notes),
        'residuals': fit.residuals.tolist(),
    }
    return _finite(found)


def show(tested: Tested, console: Console) -> None:
    """Prints runs, parameters with intervals, the optimum of larger budgets, what was held out."""
    fit, seen = tested.fit, tested.seen
    console.print(_about(seen), soft_wrap=True)
    rms = math.sqrt(float(np.mean(fit.residuals**2)))
    hit = f' ({", ".join(fit.hit_bounds)})' if fit.hit_bounds else ''
    console.print(
        f'{fit.method}: {fit.status}{hit}; condition number {fit.condition_number:.3g}; '
        f'loss missed by {rms:.2%} rms',
        soft_wrap=True,
    )
    if _samples(tested):
        failed = f', {fit.failed} more without a fit' if fit.failed else ''
        console.print(f'intervals: {LEVEL:.0%} of {_samples(tested)} bootstrap fits{failed}')
    console.print()
    parameters = _table('parameter', 'value', 'interval')
    for name, value in fit.parameters.items():
        parameters.add_row(name, f'{value:.5g}', _interval(fit.interval(name)))
    console.print(parameters)
    console.print()
    optimum = _table('FLOPs', 'optimum', 'value', 'interval')
    for flops in targets(tested):
        for name, predict in {
            'N*': fit.best_params,
            'D*': fit.best_tokens,
            'L*': fit.best_loss,
        }.items():
            found = predict(flops)
            optimum.add_row(f'{flops:.3g}', name, f'{found.value:.4g}', _interval(found.interval))
    console.print(optimum)
    if tested.held is not None:
        console.print()
        console.print(f'held out: {_about(tested.held)}', soft_wrap=True)
        missed = _table('FLOPs', 'quantity', 'predicted', 'interval', 'measured', 'miss', 'inside')
        for miss in tested.misses:
            inside = {None: '', True: 'yes', False: 'no'}[miss.covered]
            missed.add_row(
                f'{miss.flops:.3g}',
                miss.quantity,
                f'{miss.predicted.value:.4g}',
                _interval(miss.predicted.interval),
                f'{miss.measured:.4g}',
                f'{miss.relative:+.2%}',
                inside,
            )
        console.print(missed)
    for note in tested.notes:
        console.print(note, soft_wrap=True)


def draw(tested: Tested, path: Path) -> None:
    """The overview as PNG. Raises: EnvironmentProblem."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save(plots.overview(tested), path)


def write(tested: Tested, folder: Path) -> None:
    """fit.json and figures. Raises: EnvironmentProblem."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(to_dict(tested), indent=2, allow_nan=False)
        (folder / 'fit.json').write_text(text + '\n')
        for figure in (plots.isoflops, plots.frontier, plots.residuals):
            save(figure(tested), folder / f'{figure.__name__}.png')


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(f'cannot write {path}: {error.strerror}') from error


def _about(runs: Runs) -> str:
    flops, _ = budgets(runs.flops)
    span = ' to '.join(dict.fromkeys(f'{f:.3g}' for f in (runs.flops.min(), runs.flops.max())))
    skipped = f' ({runs.skipped} without a result skipped)' if runs.skipped else ''
    many = f'{len(flops)} budget{"s" * (len(flops) > 1)}'
    return (
        f'{len(runs.loss)} runs{skipped}, {many}, {span} FLOPs '
        f'({runs.convention}; C = {runs.cost:.3g} N D)'
    )


def _samples(tested: Tested) -> int:
    samples = tested.fit.samples
    return 0 if samples is None else int(np.size(samples.a))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style='bold')
    for name in columns:
        left = name in ('parameter', 'quantity', 'optimum')
        table.add_column(name, justify='left' if left else 'right', no_wrap=True)
    return table


def _interval(interval: Interval | None) -> str:
    return '' if interval is None else f'{interval.low:.4g} to {interval.high:.4g}'


def _with(prediction: Prediction) -> dict[str, Any]:
    interval = prediction.interval
    return {'value': prediction.value, 'interval': None if interval is None else list(interval)}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
