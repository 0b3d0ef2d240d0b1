"""Approach 3: Huber's loss of log L(N, D), from a grid of starts (Hoffmann et al. 2022, D.3).

    minimise  sum Huber_1e-3( LSE(a - alpha ln N, b - beta ln D, e) - ln L )

with A = exp a, B = exp b, E = exp e. The losses are summed: averaged, they are so small that a
minimiser's tolerances end it early, which is what went wrong in the first published fit (Besiroglu
et al. 2024). Logs are centred first, which moves no minimum and conditions the search.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from bigjax.study.fits import resample, solver, terms
from bigjax.study.fits.law import Law
from bigjax.study.fits.resample import Bootstrap
from bigjax.study.fits.result import Fit
from bigjax.study.fits.table import Runs

DELTA = 1e-3
STARTS_A = STARTS_B = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
STARTS_E = (-1.0, -0.5, 0.0, 0.5, 1.0)
STARTS_EXPONENTS = (0.0, 0.5, 1.0, 1.5, 2.0)
CACHED = 48_000  # numbers of each array [problems, runs]
KEPT = 3  # of the best, distinct minima, from which each bootstrap sample starts


def grid() -> np.ndarray:
    """The 4,500 starts (a, b, e, alpha, beta), [4500, 5]."""
    axes = (STARTS_A, STARTS_B, STARTS_E, STARTS_EXPONENTS, STARTS_EXPONENTS)
    return np.array(list(itertools.product(*axes)))


def fit(runs: Runs, bootstrap: Bootstrap = resample.NONE, starts: np.ndarray | None = None) -> Fit:
    """The best of the minima from all starts [S, 5]. Raises: DataError."""
    terms.check(runs)
    centre = np.mean(np.log(runs.params)), np.mean(np.log(runs.tokens))
    logs = np.log(runs.loss)
    begin = _centred(grid() if starts is None else starts, centre)
    found = solver.minimise(objective(runs, logs[None]), begin, block=_block(runs))
    order = np.argsort(np.where(np.isfinite(found.values), found.values, np.inf))
    best = order[0]
    law = _law(found.points[best], centre, runs.cost)
    fitted = np.log(law.loss(runs.params, runs.tokens))
    hit = terms.degenerate(law, runs)
    converged = bool(found.converged[order[found.values[order] <= found.values[best] + 1e-9]].any())
    samples, failed = None, 0
    if bootstrap.samples:
        several = _distinct(found.points[order], found.values[order])
        samples, failed = _bootstrap(runs, fitted, several, centre, bootstrap)
    return Fit(
        'parametric',
        law,
        terms.status(converged, hit),
        float(found.values[best]),
        logs - fitted,
        terms.condition_number(jacobian(law, runs)),
        hit,
        samples,
        failed,
    )


def objective(
    runs: Runs, targets: np.ndarray, weights: np.ndarray | None = None
) -> solver.Objective:
    """Sum of Huber's losses and its gradient, at points (a, b, e, alpha, beta) with logs centred.

    targets: log losses [R] of every problem, [1, R] for all; weights [S, R] likewise, 1 by default.
    """
    n, d = (np.log(x) - np.mean(np.log(x)) for x in (runs.params, runs.tokens))
    by_n, by_d = (np.stack([np.ones_like(x), -x], axis=1) for x in (n, d))

    def values(points: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, b, e, alpha, beta = (points[:, index, None] for index in range(5))
        params, tokens, floor = np.exp(a - alpha * n), np.exp(b - beta * d), np.exp(e)
        total = params + tokens
        total += floor
        misses = np.log(total)
        misses -= targets[rows] if len(targets) > 1 else targets
        slopes = np.clip(misses, -DELTA, DELTA)
        losses = slopes * (misses - 0.5 * slopes)
        if weights is not None:
            slopes *= weights[rows]
            losses *= weights[rows]
        slopes /= total
        of_a, of_alpha = ((slopes * params) @ by_n).T
        of_b, of_beta = ((slopes * tokens) @ by_d).T
        of_e = slopes.sum(axis=1) * floor[:, 0]
        return losses.sum(axis=1), np.stack([of_a, of_b, of_e, of_alpha, of_beta], axis=1)

    return values


def jacobian(law: Law, runs: Runs) -> np.ndarray:
    """Of log L by (a, b, e, alpha, beta), as published: logs not centred, [R, 5]."""
    params, tokens = law.A / runs.params**law.alpha, law.B / runs.tokens**law.beta
    columns = [params, tokens, np.full_like(params, law.E)]
    columns += [-params * np.log(runs.params), -tokens * np.log(runs.tokens)]
    return np.stack(columns, axis=1) / (params + tokens + law.E)[:, None]


def _bootstrap(
    runs: Runs,
    fitted: np.ndarray,
    several: np.ndarray,
    centre: tuple[float, float],
    bootstrap: Bootstrap,
) -> tuple[Law, int]:
    """Each sample's best fit from each of the starts; those that did not converge are left out."""
    size, starts = bootstrap.samples, len(several)
    logs = np.log(runs.loss)
    if bootstrap.over == 'runs':
        weights = resample.counts(np.zeros(len(logs)), bootstrap)
        fn = objective(runs, logs[None], np.repeat(weights, starts, axis=0))
    else:
        noisy = resample.noisy(fitted, logs - fitted, bootstrap)
        fn = objective(runs, np.repeat(noisy, starts, axis=0))
    found = solver.minimise(fn, np.tile(several, (size, 1)), block=_block(runs))
    values = np.where(found.converged, found.values, np.inf).reshape(size, starts)
    good = np.isfinite(values).any(axis=1)
    best = np.arange(size) * starts + values.argmin(axis=1)
    return _law(found.points[best[good]].T, centre, runs.cost), int(size - good.sum())


def _block(runs: Runs) -> int:
    """How many problems a block holds: as many as caches do, so that few runs make large blocks."""
    return max(64, CACHED // len(runs.loss))


def _distinct(points: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The first few that differ in their values, the best first."""
    _, first = np.unique(np.round(values / (values[0] + 1e-300), 3), return_index=True)
    return points[np.sort(first)[:KEPT]]


def _centred(starts: np.ndarray, centre: Sequence[float]) -> np.ndarray:
    moved = np.array(starts, np.float64)
    moved[:, 0] -= moved[:, 3] * centre[0]
    moved[:, 1] -= moved[:, 4] * centre[1]
    return moved


def _law(point: np.ndarray, centre: Sequence[float], cost: float) -> Law:
    a, b, e, alpha, beta = point
    with np.errstate(over='ignore'):  # of a sample gone astray; its interval shows it
        A, B = np.exp(a + alpha * centre[0]), np.exp(b + beta * centre[1])
    return Law(np.exp(e), A, B, alpha, beta, cost)
