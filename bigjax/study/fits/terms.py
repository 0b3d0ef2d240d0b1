"""What the fits of L(N, D) share: centred logs of the runs, degenerate laws, condition numbers."""

from typing import Literal

import numpy as np

from bigjax.errors import DataError
from bigjax.study.fits.law import Law
from bigjax.study.fits.table import Runs

EXPONENTS = (0.01, 3.0)
NEGLIGIBLE = 1e-4  # share of the loss below which a term is not there
FEWEST = 6  # rows: one more than there are parameters


def check(runs: Runs) -> None:
    """Raises: DataError where five parameters cannot be told from so few runs."""
    for name, values in (('N', runs.params), ('D', runs.tokens)):
        if len(np.unique(values)) < 3:
            raise DataError(
                f'expected at least 3 different values of {name} to fit its exponent, '
                f'got {len(np.unique(values))}; vary it in the sweep'
            )
    if len(runs.loss) < FEWEST:
        raise DataError(f'expected at least {FEWEST} runs, got {len(runs.loss)}; run more')


def degenerate(law: Law, runs: Runs) -> tuple[str, ...]:
    """The parameters at an edge, where the data do not determine them."""
    low, high = EXPONENTS
    largest = {
        'E': law.E,
        'A': np.max(law.A / runs.params**law.alpha),
        'B': np.max(law.B / runs.tokens**law.beta),
    }
    hit = [name for name, share in largest.items() if share < NEGLIGIBLE * runs.loss.min()]
    hit += [name for name in ('alpha', 'beta') if not low < getattr(law, name) < high]
    return tuple(hit)


def status(
    converged: bool, hit_bounds: tuple[str, ...]
) -> Literal['converged', 'at a bound', 'not converged']:
    """In words."""
    if not converged:
        return 'not converged'
    return 'at a bound' if hit_bounds else 'converged'


def condition_number(jacobian: np.ndarray) -> float:
    """Of the matrix [R, P] with columns scaled to length 1."""
    lengths = np.linalg.norm(jacobian, axis=0)
    if not np.all(lengths > 0):
        return float('inf')
    return float(np.linalg.cond(jacobian / lengths))
