"""Approach 2: a parabola through the losses of each budget (Hoffmann et al. 2022, section 3.2).

The minima of parabolas in log N and in log D give N* and D*, and power laws go through those. A
parabola is only the tangent of the law: where alpha differs from beta the coefficients are off by
a factor that grows with the width of the grid, though exponents are right; see `bias`.
"""

from typing import NamedTuple

import numpy as np

from bigjax.errors import DataError
from bigjax.study.fits import power, resample, terms
from bigjax.study.fits.law import Frontier, Law
from bigjax.study.fits.resample import Bootstrap
from bigjax.study.fits.result import Fit, Minima
from bigjax.study.fits.table import Runs, budgets, runs

FEWEST = 3  # runs a budget: a parabola's


class Bias(NamedTuple):
    """Relative errors of N* and D* at the target, and errors of the exponents."""

    params: float
    tokens: float
    a: float
    b: float


def fit(runs: Runs, bootstrap: Bootstrap = resample.NONE) -> Fit:
    """Raises: DataError, of a budget with too few sizes, or whose optimum is not inside them."""
    flops, which = budgets(runs.flops)
    if len(flops) < 2:
        raise DataError(f'isoflop: expected at least 2 budgets, got {len(flops)}; add one')
    minima = measure(runs)
    law = through(minima)
    misses = np.log(minima.params / law.best_params(flops))
    samples, failed = None, 0
    if bootstrap.samples:
        samples, failed = _bootstrap(runs, minima, which, bootstrap)
    return Fit(
        'isoflop',
        law,
        terms.status(True, hit := ('E',) if law.E == 0 else ()),
        float(misses @ misses),
        np.log(minima.loss / law.best_loss(flops)),
        terms.condition_number(np.stack([np.ones_like(flops), np.log(flops)], axis=1)),
        hit,
        samples,
        failed,
        misses,
        minima,
    )


def measure(runs: Runs) -> Minima:
    """The vertex of each budget's parabola. Raises: DataError, which says how to widen the grid."""
    flops, which = budgets(runs.flops)
    rows = []
    for index, budget in enumerate(flops):
        part = runs.take(which == index)
        where = f'budget {budget:.3g} FLOPs'
        parabola, params = _vertex(part.params, part.loss, where, 'parameters')
        _, tokens = _vertex(part.tokens, part.loss, where, 'tokens')
        rows.append((params, tokens, np.polyval(parabola, np.log10(params)), parabola))
    return Minima(flops, *(np.array(column) for column in zip(*rows, strict=True)))


def frontier(minima: Minima) -> Frontier:
    """Power laws through the minima of each sample: N*, D* and L* [S, B]."""
    of_params = power.fit(minima.flops, minima.params)
    of_tokens = power.fit(minima.flops, minima.tokens)
    return Frontier(*of_params, *of_tokens, *power.fit_floored(minima.flops, minima.loss))


def through(minima: Minima) -> Frontier:
    """The same of one, [B]."""
    return frontier(Minima(minima.flops, *(column[None] for column in minima[1:4]))).at(0)


def _vertex(sizes: np.ndarray, loss: np.ndarray, where: str, what: str) -> tuple[np.ndarray, float]:
    """The parabola of loss in log10 of sizes, highest power first, and the size at its minimum."""
    if len(np.unique(sizes)) < FEWEST:
        raise DataError(
            f'{where}: expected at least {FEWEST} sizes for a parabola, got '
            f'{len(np.unique(sizes))}; run more, or fit by parametric or projection'
        )
    logs = np.log10(sizes)
    middle = logs.mean()
    curvature, slope, level = np.polyfit(logs - middle, loss, 2)
    vertex = middle - slope / (2 * curvature) if curvature > 0 else np.inf * -slope
    if not logs.min() <= vertex <= logs.max():
        way = 'fewer' if vertex < logs.min() else 'more'
        best = f'{10**vertex:.3g}' if np.isfinite(vertex) else 'nowhere (no minimum)'
        raise DataError(
            f'{where}: the best number of {what} is {best}, at the edge of the sweep '
            f'({sizes.min():.3g} to {sizes.max():.3g}); widen it to {way} {what}'
        )
    centred = np.array([curvature, slope, level])
    parabola = [curvature, slope - 2 * curvature * middle, np.polyval(centred, -middle)]
    return np.array(parabola), float(10**vertex)


def _bootstrap(
    runs: Runs, minima: Minima, which: np.ndarray, bootstrap: Bootstrap
) -> tuple[Frontier, int]:
    """Samples of which a budget has no minimum inside its grid are left out, and counted."""
    size = bootstrap.samples
    shape = (size, len(minima.flops))
    params, tokens, loss = np.empty(shape), np.empty(shape), np.empty(shape)
    if bootstrap.over == 'runs':
        weights, targets = resample.counts(which, bootstrap), runs.loss[None]
    else:
        parabolas = np.asarray(minima.parabola)[which]
        x = np.log10(runs.params)
        fitted = parabolas[:, 0] * x**2 + parabolas[:, 1] * x + parabolas[:, 2]
        logs = resample.noisy(np.log(fitted), np.log(runs.loss / fitted), bootstrap)
        weights, targets = np.ones((1, len(x))), np.exp(logs)
    for index in range(len(minima.flops)):
        rows = which == index
        part = np.broadcast_to(targets[:, rows], (size, rows.sum()))
        taken = np.broadcast_to(weights[:, rows], part.shape)
        params[:, index], loss[:, index] = _vertices(runs.params[rows], part, taken)
        tokens[:, index], _ = _vertices(runs.tokens[rows], part, taken)
    good = np.isfinite(params).all(axis=1) & np.isfinite(tokens).all(axis=1)
    kept = Minima(minima.flops, params[good], tokens[good], loss[good])
    return frontier(kept), int(size - good.sum())


def _vertices(
    sizes: np.ndarray, loss: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and losses at the minima [S] of weighted parabolas; nan without one inside."""
    logs = np.log10(sizes)
    x = logs - logs.mean()
    columns = np.stack([x**2, x, np.ones_like(x)], axis=1)
    grams = np.einsum('sr,ri,rj->sij', weights, columns, columns)
    sides = np.einsum('sr,ri,sr->si', weights, columns, loss)
    enough = (weights > 0).sum(axis=1) >= FEWEST
    grams[~enough] = np.eye(3)
    curvature, slope, level = np.linalg.solve(grams, sides[..., None])[..., 0].T
    with np.errstate(all='ignore'):
        vertex = -slope / (2 * curvature)
        inside = enough & (curvature > 0) & (vertex >= x.min()) & (vertex <= x.max())
        best = np.where(inside, 10 ** (vertex + logs.mean()), np.nan)
        return best, level + slope * vertex / 2


def bias(law: Law, flops: np.ndarray, target: float, width: float, points: int = 15) -> Bias:
    """How far Approach 2 is off, without noise, on runs of the law itself.

    flops: the budgets [B], each with `points` token counts from D* / width to D* * width, evenly in
    log; target: the budget to which is extrapolated. Raises: DataError.
    """
    factors = np.exp(np.linspace(-1, 1, points) * np.log(width))
    tokens = np.asarray(law.best_tokens(flops))[:, None] * factors
    budget = np.broadcast_to(flops[:, None], tokens.shape)
    params = budget / (law.cost * tokens)
    loss = np.asarray(law.loss(params, tokens))
    found = fit(runs(params.ravel(), tokens.ravel(), loss.ravel(), budget.ravel())).law
    return Bias(
        float(found.best_params(target) / law.best_params(target) - 1),
        float(found.best_tokens(target) / law.best_tokens(target) - 1),
        float(found.a - law.a),
        float(found.b - law.b),
    )
