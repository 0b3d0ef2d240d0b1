"""Diabetes: its progression after a year (25 to 346) of 442 patients; bundled with scikit-learn.

Inputs float32 [10], standardised here, where scikit-learn's own scaling would use the statistics of
all rows; targets float32, as measured.
"""

from functools import partial

from sklearn.datasets import load_diabetes

from bigjax.data.tabular import NoOptions, from_sklearn

Config = NoOptions
load = partial(from_sklearn, partial(load_diabetes, scaled=False))
