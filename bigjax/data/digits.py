"""Handwritten digits: 1,797 images of 8x8 pixels in 17 greys; bundled with scikit-learn."""

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits

from bigjax.data import images
from bigjax.data.core import ArraySource, Dataset


@dataclass(frozen=True)
class Config:
    """No options."""


def load(config: Config) -> Dataset:
    """Inputs float32 [8, 8, 1] in [0, 1]; targets are class ids."""
    data = load_digits()
    inputs = (data.images / 16).astype(np.float32)[..., np.newaxis]
    rows = {'inputs': inputs, 'targets': data.target.astype(np.int32)}
    return images.dataset({'train': ArraySource(rows)}, 10, tuple('0123456789'))
