"""Power laws through pairs: y = k x^p, and with a floor, y = E + K x^-gamma. Batched [S, R]."""

from typing import NamedTuple

import numpy as np

from bigjax.errors import DataError
from bigjax.study.fits.law import Values, check_positive

RATES = np.linspace(0.005, 1.0, 200)
REFINEMENTS = 4
FEWEST_FOR_FLOOR = 3  # pairs, for E, K and gamma


class Power(NamedTuple):
    """y = coefficient * x ** exponent."""

    coefficient: Values
    exponent: Values

    def __call__(self, x: Values) -> Values:
        """Y at x."""
        return self.coefficient * x**self.exponent


class Floored(NamedTuple):
    """y = E + K x^-gamma."""

    E: Values
    K: Values
    gamma: Values


def fit(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> Power:
    """Least squares of log y [..., R] on log x [R], weighted [..., R], 1 by default.

    Raises: DataError without two different x, ConfigError unless all are above 0.
    """
    check_positive('x of a power law', x)
    if len(np.unique(x)) < 2:
        raise DataError(
            f'a power law: expected at least 2 different x, got {len(np.unique(x))}; '
            'add budgets to the sweep'
        )
    u, v = np.log(x), np.log(y)
    w = np.ones_like(u) if weights is None else weights
    w = w / w.sum(axis=-1, keepdims=True)
    middle = (w * u).sum(axis=-1, keepdims=True)
    centred = u - middle
    slope = (w * centred * v).sum(axis=-1) / (w * centred**2).sum(axis=-1)
    intercept = (w * v).sum(axis=-1) - slope * middle[..., 0]
    return Power(np.exp(intercept), slope)


def fit_floored(x: np.ndarray, y: np.ndarray) -> Floored:
    """Least squares of y [S, R] over E >= 0, K and gamma: linear in (E, K), so a search over gamma.

    With fewer than 3 pairs a power law without floor: E = 0.
    """
    y = np.atleast_2d(y)
    if len(x) < FEWEST_FOR_FLOOR:
        law = fit(x, y)
        return Floored(np.zeros(len(y)), np.asarray(law.coefficient), -np.asarray(law.exponent))
    u = np.log(x) - np.mean(np.log(x))
    rates = np.tile(RATES, (len(y), 1))
    for _ in range(REFINEMENTS):
        errors = _linear(u, y, rates)[2]
        best = errors.argmin(axis=1)[:, None]
        low = np.take_along_axis(rates, np.maximum(best - 1, 0), axis=1)
        high = np.take_along_axis(rates, np.minimum(best + 1, rates.shape[1] - 1), axis=1)
        rates = low + (high - low) * np.linspace(0, 1, 33)
    floors, slopes, errors = _linear(u, y, rates)
    best = errors.argmin(axis=1)[:, None]
    E, K, gamma = (np.take_along_axis(z, best, axis=1)[:, 0] for z in (floors, slopes, rates))
    return Floored(E, K * np.exp(gamma * np.mean(np.log(x))), gamma)


def _linear(
    u: np.ndarray, y: np.ndarray, rates: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E, K and the sum of squares for each rate [S, G]; where E would be below 0, it is 0."""
    column = np.exp(-rates[..., None] * u)  # [S, G, R]
    target = y[:, None, :]
    middle, mean = column.mean(axis=-1), target.mean(axis=-1)
    centred = column - middle[..., None]
    K = (centred * target).sum(axis=-1) / (centred**2).sum(axis=-1)
    E = mean - K * middle
    alone = (column * target).sum(axis=-1) / (column**2).sum(axis=-1)
    K, E = np.where(E < 0, alone, K), np.maximum(E, 0)
    misses = target - E[..., None] - K[..., None] * column
    return E, K, (misses**2).sum(axis=-1)
