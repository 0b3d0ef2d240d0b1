"""Seconds of a fit by approach 3: all 4,500 starts, and 1,000 bootstrap samples.

    python -m benchmarks.fits

The starts are those of the paper, none is left out; each sample starts from the best minima.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from benchmarks.timing import print_table
from bigjax.study.fits import parametric, projection, table
from bigjax.study.fits.law import Law
from bigjax.study.fits.resample import Bootstrap
from bigjax.study.fits.result import Fit

LAW = Law(1.69, 406.4, 410.7, 0.34, 0.28)


def noisy_runs(count: int) -> table.Runs:
    """Runs at random N and D, with 1 % of noise in the loss."""
    rng = np.random.default_rng(0)
    params, tokens = 10 ** rng.uniform(7, 10, count), 10 ** rng.uniform(9, 11.5, count)
    loss = LAW.loss(params, tokens) * np.exp(0.01 * rng.normal(size=count))
    return table.runs(params, tokens, loss)


def timed(run: Callable[[], Fit]) -> tuple[Fit, float, float]:
    """The fit, seconds, and seconds of all cores together."""
    started, cpu = time.perf_counter(), time.process_time()
    fit = run()
    return fit, time.perf_counter() - started, time.process_time() - cpu


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--smoke', action='store_true', help='few starts and samples')
    smoke = parser.parse_args(argv).smoke
    runs = noisy_runs(20 if smoke else 250)
    starts = parametric.grid()[:: 90 if smoke else 1]
    how = Bootstrap(5 if smoke else 1000)
    rows = []
    for name, goal, run in (
        (f'parametric, {len(starts):,} starts', '30', lambda: parametric.fit(runs, starts=starts)),
        (
            f'parametric, {how.samples:,} bootstrap samples',
            '120',
            lambda: parametric.fit(runs, how, starts[:1]),
        ),
        (f'projection, {how.samples:,} bootstrap samples', '', lambda: projection.fit(runs, how)),
    ):
        fit, seconds, cpu = timed(run)
        rows.append([name, f'{seconds:.3g}', f'{cpu:.3g}', goal, f'{fit.law.a:.4f}', fit.status])
    print_table(
        [f'{len(runs.loss)} runs', 'seconds', 'seconds of CPU', 'goal', 'a', 'status'], rows
    )
    print(f'a of the law: {LAW.a:.4f}')


if __name__ == '__main__':
    main()
