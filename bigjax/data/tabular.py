"""Tables: numeric and categorical columns into one float32 vector a row.

Every statistic (means, deviations, categories) is of the training rows only. Columns of the result,
in the order of the table: a numeric column is imputed and standardised, and followed by an
indicator of missing values, on demand; a categorical one becomes a column a category seen in
training, in alphabetic order, and one for any other value or none.

Shapes: N rows, F features of the result.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Bunch

from bigjax.data.core import (
    ArraySource,
    Batch,
    Dataset,
    DataSpec,
    Source,
    Transform,
    everything,
    rowwise,
)
from bigjax.errors import DataError

Statistic = Literal['mean', 'median']

Encoder = Callable[[np.ndarray], np.ndarray]
"""A raw column [N] -> its features [N, ...]."""


def dataset(
    columns: Mapping[str, np.ndarray],
    targets: np.ndarray,
    class_names: tuple[str, ...] = (),
    impute: Statistic = 'mean',
    missing_indicators: bool = False,
) -> Dataset:
    """A data set of one split, train.

    columns: [N] by name: float64, NaN where missing, or text, '' where missing.
    targets: int32 ids of `class_names`, or float32.
    """
    raw, categories = dict(columns), {}
    for name, column in columns.items():
        if column.dtype.kind != 'f':
            categories[name], raw[name] = np.unique(column, return_inverse=True)

    def prepare(train: Source) -> tuple[DataSpec, Transform]:
        rows = everything(train)['inputs']
        fitted = {
            name: _fit_categories(name, rows[name], categories[name])
            if name in categories
            else _fit_numbers(name, rows[name], impute, missing_indicators)
            for name in columns
        }
        feature_names = tuple(feature for features, _ in fitted.values() for feature in features)

        def transform(batch: Batch) -> Batch:
            features = [encode(batch['inputs'][name]) for name, (_, encode) in fitted.items()]
            inputs = np.concatenate(features, axis=1).astype(np.float32)
            return {'inputs': inputs, 'targets': batch['targets']}

        spec = DataSpec(
            inputs=jax.ShapeDtypeStruct((len(feature_names),), np.float32),
            targets=jax.ShapeDtypeStruct((), targets.dtype),
            num_classes=len(class_names) or None,
            class_names=class_names,
            feature_names=feature_names,
        )
        return spec, rowwise(transform)

    return Dataset(
        sources={'train': ArraySource({'inputs': raw, 'targets': targets})},
        prepare=prepare,
        labels=(lambda source: everything(source)['targets']) if class_names else None,
    )


@dataclass(frozen=True)
class NoOptions:
    """The config of a data set that has nothing to choose."""


def from_sklearn(fetch: Callable[[], Bunch], config: NoOptions) -> Dataset:
    """One of scikit-learn's bundled tables, numeric; the dtype of its targets tells the task."""
    bunch = fetch()
    columns = dict(zip(map(str, bunch.feature_names), bunch.data.T, strict=True))
    if bunch.target.dtype.kind == 'f':
        return dataset(columns, bunch.target.astype(np.float32))
    return dataset(columns, bunch.target.astype(np.int32), tuple(map(str, bunch.target_names)))


def _fit_numbers(
    name: str, train: np.ndarray, impute: Statistic, indicator: bool
) -> tuple[list[str], Encoder]:
    """Impute, then standardise; a constant column becomes 0."""
    missing = np.isnan(train)
    if missing.all():
        raise DataError(
            f'column {name} has no value in the training rows; list it in config.data.ignore'
        )
    scaler = make_pipeline(SimpleImputer(strategy=impute), StandardScaler()).fit(train[:, None])
    marked = indicator and missing.any()

    def encode(column: np.ndarray) -> np.ndarray:
        numbers = scaler.transform(column[:, None])
        return np.insert(numbers, 1, np.isnan(column), axis=1) if marked else numbers

    return [name, f'{name} is missing'] if marked else [name], encode


def _fit_categories(
    name: str, train: np.ndarray, categories: np.ndarray
) -> tuple[list[str], Encoder]:
    """One-hot over the categories seen in training, then 'unknown'."""
    seen = [index for index in np.unique(train) if categories[index]]

    def encode(ids: np.ndarray) -> np.ndarray:
        known = ids[:, None] == np.array(seen, int)
        return np.concatenate([known, ~known.any(axis=1, keepdims=True)], axis=1)

    return [*(f'{name}={categories[index]}' for index in seen), f'{name} unknown'], encode
