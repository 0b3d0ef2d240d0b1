"""Handwritten digits: 1,797 images of 8x8 pixels in 17 greys; bundled with scikit-learn.

Inputs float32 [8, 8, 1] in [0, 1]; targets are class ids.
"""

import numpy as np
from sklearn.datasets import load_digits

from bigjax.data import arrays
from bigjax.data.core import Dataset
from bigjax.data.tabular import NoOptions

Config = NoOptions


def load(config: Config) -> Dataset:
    """As the module says."""
    data = load_digits()
    rows = {'inputs': data.images[..., np.newaxis] / 16, 'targets': data.target}
    return arrays.dataset({'train': rows}, 'digits', class_names=tuple('0123456789'))
