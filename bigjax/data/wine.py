"""Wine: 178 chemical analyses, of three growers' wines; bundled with scikit-learn."""

from dataclasses import dataclass

from sklearn.datasets import load_wine

from bigjax.data import tabular
from bigjax.data.core import Dataset


@dataclass(frozen=True)
class Config:
    """No options."""


def load(config: Config) -> Dataset:
    """Inputs float32 [13], standardised; targets are class ids."""
    return tabular.from_sklearn(load_wine())
