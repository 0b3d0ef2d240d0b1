"""Optima read off a curve through the losses of each budget (Porian et al. 2024, section 3.1).

The curve is Akima's in log-log, evaluated on a fine grid; noise of known size in the losses gives
each optimum its spread, by which the power law through the optima is weighted.
"""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from bigjax.errors import DataError
from bigjax.study.fits import power
from bigjax.study.fits.power import Power
from bigjax.study.fits.table import Runs, budgets

POINTS_BETWEEN = 25
SMALLEST_SPREAD = 0.33  # of the distance between two runs


@dataclass(frozen=True)
class Optima:
    """flops [B], log N* of each noisy sample [S, B] (nan without one inside) and its spread [B]."""

    flops: np.ndarray
    samples: np.ndarray
    spread: np.ndarray

    @property
    def params(self) -> np.ndarray:
        """The median N* [B]."""
        return np.exp(np.nanmedian(self.samples, axis=0))

    def law(self) -> Power:
        """N*(C) through the medians."""
        return power.fit(self.flops, self.params, self.spread**-2)

    def laws(self) -> Power:
        """N*(C) of each sample that has an optimum at every budget, fields [S]."""
        whole = np.isfinite(self.samples).all(axis=1)
        return power.fit(self.flops, np.exp(self.samples[whole]), self.spread**-2)


def measure(runs: Runs, noise: float, samples: int = 1000, seed: int = 0) -> Optima:
    """Optima of the budgets where at least half of the samples have one inside the sweep.

    noise: the standard deviation of a loss from seed to seed, nats. Raises: DataError.
    """
    rng = np.random.default_rng(seed)
    flops, which = budgets(runs.flops)
    kept, columns, spreads = [], [], []
    for index, budget in enumerate(flops):
        part = runs.take(which == index)
        part = part.take(np.argsort(part.params))
        x = np.log(part.params)
        if len(x) < 3 or np.any(np.diff(x) == 0):
            raise DataError(
                f'budget {budget:.3g} FLOPs: expected at least 3 runs of different N, '
                f'got N = {", ".join(f"{n:.3g}" for n in part.params)}'
            )
        losses = part.loss[:, None] + noise * rng.normal(size=(len(x), samples))
        fine = np.linspace(x[0], x[-1], (len(x) - 1) * POINTS_BETWEEN)
        best = Akima1DInterpolator(x, np.log(losses))(fine).argmin(axis=0)
        inside = (best > 0) & (best < len(fine) - 1)
        if inside.sum() < samples / 2:
            continue
        smallest = SMALLEST_SPREAD * POINTS_BETWEEN * (fine[1] - fine[0])
        spread = max(float(np.std(fine[best[inside]])), smallest) * samples / inside.sum()
        kept.append(budget)
        columns.append(np.where(inside, fine[best], np.nan))
        spreads.append(spread)
    if len(kept) < 2:
        raise DataError(
            f'expected at least 2 budgets whose optimum is inside the sweep, got {len(kept)}; '
            'widen the sweep'
        )
    return Optima(np.array(kept), np.stack(columns, axis=1), np.array(spreads))
