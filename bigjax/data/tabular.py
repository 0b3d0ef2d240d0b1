"""Tables: numeric and categorical columns into one float32 vector a row.

Every statistic (means, deviations, categories) is of the training rows only. Columns of the result,
in order: numeric columns, imputed and standardised; indicators of missing values, on demand; one
column a category seen in training, and one for any other value or none.

Shapes: N rows, F features of the result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
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


@dataclass(frozen=True)
class Table:
    """Columns by name. numeric: float64 [N], NaN where missing. categorical: int [N], -1 where
    missing, and the names of its ids. targets: int32 ids of `class_names`, or float32."""

    numeric: Mapping[str, np.ndarray]
    categorical: Mapping[str, tuple[np.ndarray, Sequence[str]]]
    targets: np.ndarray
    class_names: tuple[str, ...] = ()


def dataset(table: Table, impute: Statistic = 'mean', missing_indicators: bool = False) -> Dataset:
    """A data set of one split, train, whose raw rows are columns of numbers and category ids."""
    raw = {
        'numeric': _stacked(list(table.numeric.values()), len(table.targets), np.float64),
        'categorical': _stacked(
            [ids for ids, _ in table.categorical.values()], len(table.targets), np.int32
        ),
        'targets': table.targets,
    }

    def prepare(train: Source) -> tuple[DataSpec, Transform]:
        rows = everything(train)
        numbers, fill = _fit_numeric(
            list(table.numeric), rows['numeric'], impute, missing_indicators
        )
        names = [choices for _, choices in table.categorical.values()]
        slots, encode = _fit_categorical(list(table.categorical), names, rows['categorical'])

        def transform(batch: Batch) -> Batch:
            inputs = np.concatenate([fill(batch['numeric']), encode(batch['categorical'])], axis=1)
            return {'inputs': inputs, 'targets': batch['targets']}

        feature_names = (*numbers, *slots)
        spec = DataSpec(
            inputs=jax.ShapeDtypeStruct((len(feature_names),), np.float32),
            targets=jax.ShapeDtypeStruct((), table.targets.dtype),
            num_classes=len(table.class_names) or None,
            class_names=table.class_names,
            feature_names=feature_names,
        )
        return spec, rowwise(transform)

    return Dataset(
        sources={'train': ArraySource(raw)},
        prepare=prepare,
        labels=(lambda source: everything(source)['targets']) if table.class_names else None,
    )


def from_sklearn(bunch: Bunch) -> Dataset:
    """One of scikit-learn's bundled tables, numeric; the dtype of its targets tells the task."""
    columns = dict(zip(map(str, bunch.feature_names), bunch.data.T, strict=True))
    if bunch.target.dtype.kind == 'f':
        return dataset(Table(columns, {}, bunch.target.astype(np.float32)))
    class_names = tuple(map(str, bunch.target_names))
    return dataset(Table(columns, {}, bunch.target.astype(np.int32), class_names))


def _stacked(columns: list[np.ndarray], num_rows: int, dtype: type) -> np.ndarray:
    return np.stack(columns, axis=1).astype(dtype) if columns else np.zeros((num_rows, 0), dtype)


def _fit_numeric(
    names: list[str], train: np.ndarray, impute: Statistic, missing_indicators: bool
) -> tuple[list[str], Callable[[np.ndarray], np.ndarray]]:
    """Impute, then standardise; a constant column becomes 0."""
    missing = np.isnan(train)
    for column in np.flatnonzero(missing.all(axis=0)):
        raise DataError(
            f'column {names[column]} has no value in the training rows; '
            f'list it in config.data.ignore'
        )
    center = np.nanmean if impute == 'mean' else np.nanmedian
    filling = center(train, axis=0)
    filled = np.where(missing, filling, train)
    mean, std = filled.mean(axis=0), filled.std(axis=0)
    scale = np.where(std > 1e-12 * np.abs(mean), std, 1.0)  # rounding leaves a constant's std > 0
    marked = np.flatnonzero(missing.any(axis=0)) if missing_indicators else np.array([], int)

    def transform(numbers: np.ndarray) -> np.ndarray:
        missing = np.isnan(numbers)
        standardised = (np.where(missing, filling, numbers) - mean) / scale
        return np.concatenate([standardised, missing[:, marked]], axis=1).astype(np.float32)

    return [*names, *(f'{names[column]} is missing' for column in marked)], transform


def _fit_categorical(
    names: list[str], choices: Sequence[Sequence[str]], train: np.ndarray
) -> tuple[list[str], Callable[[np.ndarray], np.ndarray]]:
    """One-hot over the categories seen in training, in alphabetic order, then 'unknown'."""
    slots: list[str] = []
    slot_of_id = []
    for name, choice, ids in zip(names, choices, train.T, strict=True):
        seen = sorted(set(ids[ids >= 0].tolist()), key=lambda index: choice[index])
        table = np.full(len(choice) + 1, len(slots) + len(seen))  # unseen, and -1: the last slot
        table[seen] = len(slots) + np.arange(len(seen))
        slot_of_id.append(table)
        slots += [f'{name}={choice[index]}' for index in seen] + [f'{name} unknown']

    def transform(ids: np.ndarray) -> np.ndarray:
        encoded = np.zeros((len(ids), len(slots)), np.float32)
        for table, column in zip(slot_of_id, ids.T, strict=True):
            encoded[np.arange(len(ids)), table[column]] = 1
        return encoded

    return slots, transform
