"""Diabetes: its progression after a year (25 to 346) of 442 patients; bundled with scikit-learn."""

from dataclasses import dataclass

from sklearn.datasets import load_diabetes

from bigjax.data import tabular
from bigjax.data.core import Dataset


@dataclass(frozen=True)
class Config:
    """No options."""


def load(config: Config) -> Dataset:
    """Inputs float32 [10], standardised; targets float32, as measured."""
    return tabular.from_sklearn(
        load_diabetes(scaled=False)
    )  # scaled would use statistics of all rows
