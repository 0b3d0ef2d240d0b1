"""Predictions put to the test: the largest budgets are kept from the fit, and then predicted."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from bigjax.errors import ConfigError, DataError
from bigjax.study.fits import envelope, isoflop, methods
from bigjax.study.fits.law import Law
from bigjax.study.fits.resample import Bootstrap
from bigjax.study.fits.result import Fit, Interval, Minima, Prediction
from bigjax.study.fits.table import Runs, budgets

FEWEST = 2  # budgets that a fit keeps


class Miss(NamedTuple):
    """One figure of a held-out budget: predicted, with the interval of a measurement, measured."""

    flops: float
    quantity: Literal['best run', 'L*', 'N*']
    predicted: Prediction
    measured: float

    @property
    def relative(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted.value / self.measured - 1

    @property
    def covered(self) -> bool | None:
        """Whether the interval has the measurement; None without one."""
        interval: Interval | None = self.predicted.interval
        return interval and interval.low <= self.measured <= interval.high


@dataclass(frozen=True)
class Tested:
    """A fit, the runs that it saw, those held out, and how it missed them.

    notes: what could not be compared, and why.
    """

    fit: Fit
    seen: Runs
    held: Runs | None
    misses: tuple[Miss, ...] = ()
    notes: tuple[str, ...] = ()


def judge(runs: Runs, method: str, bootstrap: Bootstrap, hold_out: int = 1) -> Tested:
    """The fit to all but the `hold_out` largest budgets. Raises: ConfigError, DataError."""
    function = methods.find(method)
    if hold_out < 0:
        raise ConfigError(f'hold_out: expected 0 or more budgets, got {hold_out}')
    if not hold_out:
        return Tested(function(runs, bootstrap), runs, None)
    if method == 'envelope':
        return _envelope(runs, bootstrap, hold_out)
    flops, which = budgets(runs.flops)
    if len(flops) < hold_out + FEWEST:
        raise DataError(
            f'expected at least {hold_out + FEWEST} budgets, to hold out {hold_out}, got '
            f'{len(flops)} (FLOPs within 10 % of a neighbour are one); '
            'add budgets, or hold out none (--hold_out=0)'
        )
    top = which >= len(flops) - hold_out
    seen, held = runs.take(~top), runs.take(top)
    fit = function(seen, bootstrap)
    misses: list[Miss] = []
    notes = []
    for index in range(len(flops) - hold_out, len(flops)):
        part = runs.take(which == index)
        misses += _best_run(fit, part)
        try:
            misses += _optimum(fit, isoflop.measure(part))
        except DataError as error:  # which says that this budget has no optimum to compare with
            notes.append(f'N* and L* not compared: {error}')
    return Tested(fit, seen, held, tuple(misses), tuple(notes))


def _best_run(fit: Fit, part: Runs) -> list[Miss]:
    """The loss of the best run, where the method predicts that of a run."""
    if not isinstance(fit.law, Law):
        return []
    best = int(part.loss.argmin())
    predicted = fit.loss(float(part.params[best]), float(part.tokens[best]), noise=True)
    return [Miss(float(part.flops[best]), 'best run', predicted, float(part.loss[best]))]


def _optimum(fit: Fit, measured: Minima) -> list[Miss]:
    flops = float(measured.flops[-1])
    loss, params = float(measured.loss[-1]), float(measured.params[-1])
    return [
        Miss(flops, 'L*', fit.best_loss(flops, noise=True), loss),
        Miss(flops, 'N*', fit.best_params(flops, noise=True), params),
    ]


def _envelope(runs: Runs, bootstrap: Bootstrap, hold_out: int) -> Tested:
    """Curves have no budgets: what is held out is all beyond a half (a quarter, ...) of the last
    budget whose best curve is between others."""
    minima = envelope.fit(runs).minima
    assert minima is not None
    top = runs.flops > minima.flops[-1] / 2**hold_out
    if np.all(top):
        raise DataError('envelope: nothing is left to fit; hold out none (--hold_out=0)')
    fit = envelope.fit(runs.take(~top), bootstrap)
    return Tested(fit, runs.take(~top), runs.take(top), tuple(_optimum(fit, minima)))
