"""Bootstrap samples: which runs a sample takes, or what noise it adds."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bigjax.errors import ConfigError


@dataclass(frozen=True)
class Bootstrap:
    """samples: how many fits; none by default.

    over: 'runs' draws rows with replacement; 'noise' keeps them, and gives each log loss the fit's
        own value and the residual of a row drawn at random (Efron & Tibshirani 1993, section 9.4).
    """

    samples: int = 0
    over: Literal['runs', 'noise'] = 'runs'
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 0 or self.seed < 0:
            raise ConfigError(f'bootstrap: expected samples and seed of 0 or more, got {self}')
        if self.over not in ('runs', 'noise'):
            raise ConfigError(f"bootstrap: expected over 'runs' or 'noise', got {self.over!r}")


NONE = Bootstrap()


def counts(strata: np.ndarray, bootstrap: Bootstrap) -> np.ndarray:
    """How often each sample takes each row [S, R]; each stratum [R] keeps its number of rows."""
    rng = np.random.default_rng(bootstrap.seed)
    taken = np.zeros((bootstrap.samples, len(strata)))
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        shares = np.full(len(rows), 1 / len(rows))
        taken[:, rows] = rng.multinomial(len(rows), shares, size=bootstrap.samples)
    return taken


def noisy(fitted: np.ndarray, residuals: np.ndarray, bootstrap: Bootstrap) -> np.ndarray:
    """Fitted values [R] plus residuals of rows drawn at random [S, R]."""
    rng = np.random.default_rng(bootstrap.seed)
    return fitted + rng.choice(residuals, (bootstrap.samples, len(fitted)))
