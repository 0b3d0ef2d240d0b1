"""A minimiser for many small smooth problems at once: BFGS with backtracking, in float64.

Each row is a problem of its own: a start, or a bootstrap sample. Rows that have converged leave
the batch. Blocks of rows go to threads (NumPy lets go of the interpreter), small enough for caches.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

Objective = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(points [S, P], which problems [S]) -> values [S], gradients [S, P]."""

BLOCK = 96  # rows
SUFFICIENT = 1e-4  # Armijo's constant
TRIES = 20  # shorter steps
MAX_STEP = 5.0


class Minima(NamedTuple):
    """points [S, P], values [S], gradients [S]: the largest entry, converged [S]."""

    points: np.ndarray
    values: np.ndarray
    gradients: np.ndarray
    converged: np.ndarray


def minimise(
    objective: Objective,
    starts: np.ndarray,
    tolerance: float = 1e-9,
    max_iterations: int = 400,
    block: int = BLOCK,
) -> Minima:
    """A local minimum from each of the starts [S, P].

    tolerance: of the largest entry of the gradient; and a row ends where no step lowers it.
    """
    blocks = np.array_split(np.arange(len(starts)), -(-len(starts) // block))

    def run(rows: np.ndarray) -> Minima:
        with np.errstate(all='ignore'):  # a step too far overflows, and is taken back
            return _bfgs(objective, starts[rows], rows, tolerance, max_iterations)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(run, blocks))
    return Minima(*map(np.concatenate, zip(*parts, strict=True)))


def _bfgs(
    objective: Objective, starts: np.ndarray, rows: np.ndarray, tolerance: float, iterations: int
) -> Minima:
    points = np.array(starts, np.float64)
    values, gradients = objective(points, rows)
    converged = np.zeros(len(points), bool)
    inverses = np.tile(np.eye(points.shape[1]), (len(points), 1, 1))
    fresh = np.ones(len(points), bool)
    live = np.flatnonzero(np.isfinite(values))
    for _ in range(iterations):
        done = np.abs(gradients[live]).max(axis=1) <= tolerance
        converged[live[done]] = True
        live = live[~done]
        if not live.size:
            break
        x, f, g, inverse = points[live], values[live], gradients[live], inverses[live]
        steps = -np.einsum('sij,sj->si', inverse, g)
        slopes = np.einsum('si,si->s', steps, g)
        uphill = ~(slopes < 0)
        fresh[live[uphill]] = True
        steps[uphill] = -g[uphill]
        inverses[live[uphill]] = np.eye(points.shape[1])
        # The first step has no scale yet: a tenth of a unit is small beside any start's distance.
        norms = np.abs(steps).max(axis=1)
        first = np.where(fresh[live], 0.1 / norms, 1.0)
        steps *= np.minimum(first, MAX_STEP / norms)[:, None]
        slopes = np.einsum('si,si->s', steps, g)
        moved, new_x, new_f, new_g = _backtrack(objective, x, f, g, steps, slopes, rows[live])
        points[live], values[live], gradients[live] = new_x, new_f, new_g
        _update(inverses, fresh, live[moved], (new_x - x)[moved], (new_g - g)[moved])
        # Stuck along a quasi-Newton step: once more along the gradient, and then it is over.
        stuck = live[~moved]
        over = stuck[fresh[stuck]]
        converged[over] = np.abs(gradients[over]).max(axis=1) <= 1e3 * tolerance
        fresh[stuck], inverses[stuck] = True, np.eye(points.shape[1])
        live = np.setdiff1d(live, over, assume_unique=True)
    return Minima(points, values, np.abs(gradients).max(axis=1), converged)


def _backtrack(
    objective: Objective,
    x: np.ndarray,
    f: np.ndarray,
    g: np.ndarray,
    steps: np.ndarray,
    slopes: np.ndarray,
    rows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Halves (or interpolates) each step until it lowers its value enough."""
    new_x, new_f, new_g = x.copy(), f.copy(), g.copy()
    scale = np.ones(len(x))
    left = np.arange(len(x))
    moved = np.zeros(len(x), bool)
    for _ in range(TRIES):
        tried = x[left] + scale[left, None] * steps[left]
        value, gradient = objective(tried, rows[left])
        good = value <= f[left] + SUFFICIENT * scale[left] * slopes[left]
        good &= np.isfinite(gradient).all(axis=1) & (value < f[left])
        took = left[good]
        new_x[took], new_f[took], new_g[took] = tried[good], value[good], gradient[good]
        moved[took] = True
        # The minimum of the parabola through what is known, within a tenth to a half.
        t, slope = scale[left], slopes[left]
        best = -slope * t**2 / (2 * (value - f[left] - slope * t))
        scale[left] = np.clip(np.where(np.isfinite(best), best, 0), 0.1 * t, 0.5 * t)
        left = left[~good]
        if not left.size:
            break
    return moved, new_x, new_f, new_g


def _update(
    inverses: np.ndarray, fresh: np.ndarray, rows: np.ndarray, s: np.ndarray, y: np.ndarray
) -> None:
    """The BFGS update of the inverse Hessian, where the curvature is positive (Nocedal & Wright
    2006, equation 6.17; the first scaled as in 6.20)."""
    curvature = np.einsum('si,si->s', s, y)
    good = curvature > 1e-12 * np.linalg.norm(s, axis=1) * np.linalg.norm(y, axis=1)
    rows, s, y, curvature = rows[good], s[good], y[good], curvature[good]
    eye = np.eye(s.shape[1])
    scale = curvature / np.einsum('si,si->s', y, y)
    old = np.where(fresh[rows, None, None], scale[:, None, None] * eye, inverses[rows])
    left = eye - s[:, :, None] * y[:, None, :] / curvature[:, None, None]
    update = s[:, :, None] * s[:, None, :] / curvature[:, None, None]
    inverses[rows] = left @ old @ left.transpose(0, 2, 1) + update
    fresh[rows] = False
