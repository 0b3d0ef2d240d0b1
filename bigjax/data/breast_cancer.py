"""Breast cancer, Wisconsin: 569 samples, malignant (0) or benign (1); bundled with scikit-learn.

Inputs float32 [30], standardised; targets are class ids.
"""

from functools import partial

from sklearn.datasets import load_breast_cancer

from bigjax.data.tabular import NoOptions, from_sklearn

Config = NoOptions
load = partial(from_sklearn, load_breast_cancer)
