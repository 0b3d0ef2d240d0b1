"""Breast cancer, Wisconsin: 569 samples, malignant (0) or benign (1); bundled with scikit-learn."""

from dataclasses import dataclass

from sklearn.datasets import load_breast_cancer

from bigjax.data import tabular
from bigjax.data.core import Dataset


@dataclass(frozen=True)
class Config:
    """No options."""


def load(config: Config) -> Dataset:
    """Inputs float32 [30], standardised; targets are class ids."""
    return tabular.from_sklearn(load_breast_cancer())
