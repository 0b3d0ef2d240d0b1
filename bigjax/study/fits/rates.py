"""Learning rate and batch size as power laws of C, N and D: fits, and what others found."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bigjax.errors import ConfigError, DataError
from bigjax.study.fits.law import Values, check_positive


@dataclass(frozen=True)
class Monomial:
    """coefficient * product of x ** exponent, by the names of its variables, such as N and D."""

    coefficient: float
    exponents: Mapping[str, float]

    def __call__(self, **variables: Values) -> Values:
        """The value at N=..., D=... Raises: ConfigError unless just its own are given."""
        if variables.keys() != self.exponents.keys():
            raise ConfigError(
                f'expected {" and ".join(self.exponents)}, got {", ".join(variables) or "nothing"}'
            )
        value: Values = self.coefficient
        for name, exponent in self.exponents.items():
            value = value * variables[name] ** exponent
        return value


def fit(y: np.ndarray, **variables: np.ndarray) -> Monomial:
    """Least squares of log y [R] on the logs of the variables [R].

    Raises: DataError where they do not vary independently, ConfigError unless all are above 0.
    """
    check_positive('y', y)
    for name, values in variables.items():
        check_positive(name, values)
    logs = np.stack([np.log(values) for values in variables.values()], axis=1)
    centre = logs.mean(axis=0)
    if len(y) <= len(variables) or np.linalg.matrix_rank(logs - centre) < len(variables):
        raise DataError(
            f'{", ".join(variables)}: expected more rows than variables, varied independently, '
            f'got {len(y)} rows; add runs'
        )
    exponents, *_ = np.linalg.lstsq(logs - centre, np.log(y) - np.log(y).mean(), rcond=None)
    level = np.log(y).mean() - centre @ exponents
    named = dict(zip(variables, exponents.tolist(), strict=True))
    return Monomial(float(np.exp(level)), named)


def valley(rates: np.ndarray, loss: np.ndarray) -> float:
    """The learning rate at the bottom of a parabola in its log, [R] each.

    Raises: DataError where the bottom is outside the sweep, and says which way to widen it.
    """
    check_positive('learning rates', rates)
    if len(np.unique(rates)) < 3:
        raise DataError(f'expected at least 3 learning rates, got {len(np.unique(rates))}; add one')
    logs = np.log(rates)
    curvature, slope, _ = np.polyfit(logs - logs.mean(), loss, 2)
    best = -slope / (2 * curvature) + logs.mean() if curvature > 0 else np.inf * -slope
    if not logs.min() <= best <= logs.max():
        way = 'lower' if best < logs.min() else 'higher'
        raise DataError(
            f'the best learning rate is at the edge of the sweep ({rates.min():.3g} to '
            f'{rates.max():.3g}); widen it to {way} ones'
        )
    return float(np.exp(best))
