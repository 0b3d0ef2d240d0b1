"""Variable projection: for fixed (alpha, beta) the law is linear in (E, A, B).

Non-negative least squares solves for those, and what is left is a search in two dimensions, far
better conditioned than that in five (Golub & Pereyra 1973). Losses are in nats, not logs.
"""

import itertools

import numpy as np

from bigjax.study.fits import resample, solver, terms
from bigjax.study.fits.law import Law
from bigjax.study.fits.resample import Bootstrap
from bigjax.study.fits.result import Fit
from bigjax.study.fits.table import Runs

GRID = np.log(np.geomspace(0.03, 1.5, 8))
ITERATIONS = 60
SUPPORTS = [
    list(columns) for size in (1, 2, 3) for columns in itertools.combinations(range(3), size)
]


def fit(runs: Runs, bootstrap: Bootstrap = resample.NONE) -> Fit:
    """The least sum of squares over all starts of a grid. Raises: DataError."""
    terms.check(runs)
    centre = np.mean(np.log(runs.params)), np.mean(np.log(runs.tokens))
    starts = np.array(list(itertools.product(GRID, GRID)))
    found = solver.minimise(objective(runs, runs.loss[None]), starts, 1e-10, ITERATIONS)
    best = np.nanargmin(found.values)
    law = _law(found.points[best][None], runs, runs.loss[None], None, centre).at(0)
    fitted = np.asarray(law.loss(runs.params, runs.tokens))
    hit = terms.degenerate(law, runs)
    samples, failed = None, 0
    if bootstrap.samples:
        samples, failed = _bootstrap(runs, fitted, found.points[best], centre, bootstrap)
    same = found.values <= found.values[best] * (1 + 1e-6) + 1e-12
    return Fit(
        'projection',
        law,
        terms.status(bool(found.converged[same].any()), hit),
        float(np.sum((runs.loss - fitted) ** 2)),
        np.log(runs.loss / fitted),
        terms.condition_number(jacobian(law, runs)),
        hit,
        samples,
        failed,
    )


def objective(
    runs: Runs, targets: np.ndarray, weights: np.ndarray | None = None
) -> solver.Objective:
    """Mean of squares left by the best (E, A, B), at points (ln alpha, ln beta), and its gradient.

    By the envelope theorem (E, A, B) count as constants in the gradient. targets: losses [S or 1,
    R]; weights likewise, 1 by default.
    """
    n, d = (np.log(x) - np.mean(np.log(x)) for x in (runs.params, runs.tokens))
    scale = np.var(runs.loss) * len(runs.loss) + 1e-300

    def values(points: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = targets[rows] if len(targets) > 1 else np.broadcast_to(targets, (len(rows), len(n)))
        w = np.ones_like(y) if weights is None else weights[rows]
        columns, exponents = _columns(points, n, d)
        linear = non_negative(columns, y, w)
        misses = w * (np.einsum('sri,si->sr', columns, linear) - y)
        of_alpha = -2 * linear[:, 1] * (misses * columns[..., 1] * n).sum(axis=1)
        of_beta = -2 * linear[:, 2] * (misses * columns[..., 2] * d).sum(axis=1)
        gradient = np.stack([of_alpha, of_beta], axis=1) * exponents / scale
        with np.errstate(invalid='ignore', divide='ignore'):
            squares = np.where(w > 0, misses**2 / np.where(w > 0, w, 1), 0).sum(axis=1)
        return squares / scale, gradient

    return values


def non_negative(columns: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Least squares with coefficients [S, 3] of 0 or more, of y [S, R] on columns [S, R, 3].

    All seven sets of columns that may be in use are solved; the best that is feasible is the
    solution (Lawson & Hanson 1974, chapter 23, finds the same set step by step).
    """
    root = np.sqrt(weights)
    q, r = np.linalg.qr(columns * root[..., None])
    side = np.einsum('sri,sr->si', q, y * root)
    best = np.zeros((len(y), 3))
    gain = np.zeros(len(y))
    for support in SUPPORTS:
        part = r[..., support]
        grams = part.transpose(0, 2, 1) @ part
        trace = np.trace(grams, axis1=1, axis2=2)[:, None, None]
        grams = grams + 1e-15 * trace * np.eye(len(support))  # equal columns stay solvable
        projected = np.einsum('sij,si->sj', part, side)
        found = np.linalg.solve(grams, projected[..., None])[..., 0]
        # Once more on what is left: normal equations alone lose half of the digits.
        left = side - np.einsum('sij,sj->si', part, found)
        found += np.linalg.solve(grams, np.einsum('sij,si->sj', part, left)[..., None])[..., 0]
        left = side - np.einsum('sij,sj->si', part, found)
        explained = (side**2).sum(axis=1) - (left**2).sum(axis=1)
        better = (found >= 0).all(axis=1) & (explained >= gain)
        best[better] = 0
        best[np.ix_(better, support)] = found[better]
        gain[better] = explained[better]
    return best


def jacobian(law: Law, runs: Runs) -> np.ndarray:
    """Of the residuals by (alpha, beta), less what (E, A, B) can make up for, [R, 2]."""
    params, tokens = runs.params**-law.alpha, runs.tokens**-law.beta
    linear = np.stack([np.ones_like(params), params, tokens], axis=1)
    q, _ = np.linalg.qr(linear / np.linalg.norm(linear, axis=0))
    full = np.stack(
        [law.A * params * np.log(runs.params), law.B * tokens * np.log(runs.tokens)], axis=1
    )
    return full - q @ (q.T @ full)


def _columns(points: np.ndarray, n: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    exponents = np.exp(points)
    of_n, of_d = np.exp(-exponents[:, :1] * n), np.exp(-exponents[:, 1:] * d)
    return np.stack([np.ones_like(of_n), of_n, of_d], axis=2), exponents


def _law(
    points: np.ndarray,
    runs: Runs,
    targets: np.ndarray,
    weights: np.ndarray | None,
    centre: tuple[float, float],
) -> Law:
    """Fields [S] from points (ln alpha, ln beta) [S, 2]."""
    n, d = np.log(runs.params) - centre[0], np.log(runs.tokens) - centre[1]
    columns, exponents = _columns(points, n, d)
    y = np.broadcast_to(targets, columns.shape[:2])
    E, A, B = non_negative(columns, y, np.ones_like(y) if weights is None else weights).T
    alpha, beta = exponents.T
    return Law(
        E, A * np.exp(alpha * centre[0]), B * np.exp(beta * centre[1]), alpha, beta, runs.cost
    )


def _bootstrap(
    runs: Runs,
    fitted: np.ndarray,
    start: np.ndarray,
    centre: tuple[float, float],
    bootstrap: Bootstrap,
) -> tuple[Law, int]:
    weights, targets = None, runs.loss[None]
    if bootstrap.over == 'runs':
        weights = resample.counts(np.zeros(len(runs.loss)), bootstrap)
    else:
        logs = np.log(fitted)
        targets = np.exp(resample.noisy(logs, np.log(runs.loss) - logs, bootstrap))
    starts = np.tile(start, (bootstrap.samples, 1))
    found = solver.minimise(objective(runs, targets, weights), starts, 1e-8, ITERATIONS)
    good = found.converged
    picked = None if weights is None else weights[good]
    kept = targets[good] if len(targets) > 1 else targets
    law = _law(found.points[good], runs, kept, picked, centre)
    return law, int(len(good) - good.sum())
