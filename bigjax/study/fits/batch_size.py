"""How steps trade for examples as batches grow, and the critical batch (McCandlish et al. 2018).

B batch size, in examples or tokens. What predicts it: `bigjax.analysis.noise_scale`.
"""

from typing import NamedTuple

import numpy as np

from bigjax.errors import DataError
from bigjax.study.fits.law import Values, check_positive


class TradeOff(NamedTuple):
    """(S / S_min - 1) (E / E_min - 1) = 1 (equation 2.11): steps S and examples E to one loss."""

    steps: float
    examples: float

    @property
    def critical_batch(self) -> float:
        """B_crit = E_min / S_min (equation 2.12)."""
        return self.examples / self.steps

    def steps_at(self, batch: Values) -> Values:
        """S = S_min + E_min / B."""
        return self.steps + self.examples / batch

    def examples_at(self, batch: Values) -> Values:
        """E = B S."""
        return batch * self.steps_at(batch)


def fit_trade_off(batch: np.ndarray, steps: np.ndarray) -> TradeOff:
    """Least squares of the relative misses in steps [R] at batch sizes [R]: linear in S_min, E_min.

    Raises: DataError where either would be 0 or less, ConfigError unless all are above 0.
    """
    check_positive('batch sizes', batch)
    check_positive('steps', steps)
    if len(np.unique(batch)) < 2:
        raise DataError(f'expected at least 2 batch sizes, got {len(np.unique(batch))}; add one')
    columns = np.stack([np.ones_like(steps, dtype=float), 1 / batch], axis=1) / steps[:, None]
    lengths = np.linalg.norm(columns, axis=0)
    found, *_ = np.linalg.lstsq(columns / lengths, np.ones(len(steps)), rcond=None)
    fewest, least = found / lengths
    if fewest <= 0 or least <= 0:
        way = 'larger' if fewest <= 0 else 'smaller'
        raise DataError(
            f'the trade-off has S_min {fewest:.3g} and E_min {least:.3g}: these batch sizes do not '
            f'show both ends of it; add {way} ones'
        )
    return TradeOff(float(fewest), float(least))
