"""Approach 1: the lowest loss at each budget over all training curves (Hoffmann et al. 2022, 3.1).

Losses are interpolated in log C along each curve and not smoothed: smooth noisy ones first. A
budget whose best curve is the smallest or largest model that got so far is left out: it has no
minimum inside the sweep.
"""

import numpy as np

from bigjax.errors import DataError
from bigjax.study.fits import isoflop, resample, terms
from bigjax.study.fits.law import Frontier
from bigjax.study.fits.resample import Bootstrap
from bigjax.study.fits.result import Fit, Minima
from bigjax.study.fits.table import Runs

BUDGETS = 200


def fit(runs: Runs, bootstrap: Bootstrap = resample.NONE, budgets: int = BUDGETS) -> Fit:
    """Rows of one `curve` are points of one run. Bootstrap samples draw curves.

    Raises: DataError where no curve is best between others, or there are fewer than 3 curves.
    """
    flops, loss, params, tokens = _curves(runs, budgets)
    minima = _minima(flops, loss, params, tokens)
    if minima is None:
        raise DataError(
            'envelope: at no two budgets is the best curve between a smaller and a larger model '
            'that got so far; train more sizes, longer'
        )
    law = isoflop.through(minima)
    misses = np.log(minima.params / law.best_params(minima.flops))
    design = np.stack([np.ones_like(minima.flops), np.log(minima.flops)], axis=1)
    samples, failed = None, 0
    if bootstrap.samples:
        samples, failed = _bootstrap(flops, loss, params, tokens, bootstrap)
    hit = ('E',) if law.E == 0 else ()
    return Fit(
        'envelope',
        law,
        terms.status(True, hit),
        float(misses @ misses),
        np.log(minima.loss / law.best_loss(minima.flops)),
        terms.condition_number(design),
        hit,
        samples,
        failed,
        misses,
        minima,
    )


def _curves(runs: Runs, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Budgets [B]; loss (inf beyond a curve's ends) [K, B], N [K], rising, and D [K, B]."""
    labels = np.unique(runs.curve)
    curves = [runs.take(runs.curve == label) for label in labels]
    curves = [curve.take(np.argsort(curve.flops)) for curve in curves if len(curve.loss) > 1]
    if len(curves) < 3:
        raise DataError(
            f'envelope: expected at least 3 training curves of 2 points or more, got {len(curves)} '
            f'(curves: {len(labels)}); give a row for each evaluation, or use another method'
        )
    for curve in curves:
        if np.ptp(curve.params) > 0 or not np.all(np.diff(curve.flops) > 0):
            raise DataError(
                f'curve {curve.curve[0]!r}: expected one N and different FLOPs for each point; '
                'name the column that tells training runs apart (--curve)'
            )
    curves.sort(key=lambda curve: curve.params[0])
    starts, ends = [c.flops[0] for c in curves], [c.flops[-1] for c in curves]
    flops = np.geomspace(min(starts), max(ends), count)
    x = np.log(flops)
    loss = [
        np.exp(np.interp(x, np.log(c.flops), np.log(c.loss), left=np.inf, right=np.inf))
        for c in curves
    ]
    tokens = [np.exp(np.interp(x, np.log(c.flops), np.log(c.tokens))) for c in curves]
    return flops, np.array(loss), np.array([c.params[0] for c in curves]), np.array(tokens)


def _minima(
    flops: np.ndarray, loss: np.ndarray, params: np.ndarray, tokens: np.ndarray
) -> Minima | None:
    """Of the budgets whose best curve has neighbours of either side; None if of fewer than two."""
    best = loss.argmin(axis=0)
    reached = np.where(np.isfinite(loss), params[:, None], np.nan)
    any_reached = np.isfinite(reached).any(axis=0)
    low = np.where(any_reached, np.nanmin(np.where(any_reached, reached, 0), axis=0), np.inf)
    high = np.where(any_reached, np.nanmax(np.where(any_reached, reached, 0), axis=0), -np.inf)
    inside = (params[best] > low) & (params[best] < high)
    if inside.sum() < 2 or len(np.unique(params[best[inside]])) < 2:
        return None
    at = best[inside], np.flatnonzero(inside)
    return Minima(flops[inside], params[best[inside]], tokens[at], loss[at])


def _bootstrap(
    flops: np.ndarray, loss: np.ndarray, params: np.ndarray, tokens: np.ndarray, how: Bootstrap
) -> tuple[Frontier, int]:
    taken = resample.counts(np.zeros(len(params)), how) > 0
    laws = []
    for rows in taken:
        minima = _minima(flops, loss[rows], params[rows], tokens[rows])
        if minima is not None:
            laws.append(isoflop.through(minima))
    if not laws:
        raise DataError('envelope: no bootstrap sample of the curves has a best one between others')
    columns = {name: np.array([getattr(law, name) for law in laws]) for name in laws[0].values()}
    return Frontier(**columns), len(taken) - len(laws)
