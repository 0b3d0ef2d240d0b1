"""Wine: 178 chemical analyses, of three growers' wines; bundled with scikit-learn.

Inputs float32 [13], standardised; targets are class ids.
"""

from functools import partial

from sklearn.datasets import load_wine

from bigjax.data.tabular import NoOptions, from_sklearn

Config = NoOptions
load = partial(from_sklearn, load_wine)
