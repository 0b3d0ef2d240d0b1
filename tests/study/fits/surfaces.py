"""Runs drawn from a law that is known."""

import numpy as np

from bigjax.study.fits import table
from bigjax.study.fits.law import Law
from bigjax.study.fits.table import Runs

HOFFMANN = Law(1.69, 406.4, 410.7, 0.34, 0.28)


def isoflops(
    law: Law, budgets: np.ndarray, width: float, points: int = 15, noise: float = 0.0
) -> Runs:
    """Runs of each budget from N* / width to N* * width, with Gaussian noise in log loss."""
    factors = np.exp(np.linspace(-1, 1, points) * np.log(width))
    params = np.asarray(law.best_params(budgets))[:, None] * factors
    flops = np.broadcast_to(budgets[:, None], params.shape)
    tokens = flops / (law.cost * params)
    loss = law.loss(params, tokens) * np.exp(
        noise * np.random.default_rng(0).normal(size=params.shape)
    )
    return table.runs(*(np.ravel(x) for x in (params, tokens, loss, flops)))


def scattered(law: Law, count: int, noise: float = 0.0) -> Runs:
    """Runs at random N and D."""
    rng = np.random.default_rng(1)
    params, tokens = 10 ** rng.uniform(7, 10, count), 10 ** rng.uniform(9, 11.5, count)
    loss = law.loss(params, tokens) * np.exp(noise * rng.normal(size=count))
    return table.runs(params, tokens, loss)
