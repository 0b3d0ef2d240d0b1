"""Runs as a table: columns of anyone's CSV, checked cell by cell, and budgets found in them."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bigjax.errors import ConfigError, DataError, nearest
from bigjax.study.fits.law import SIX

SAME_BUDGET = 0.1  # gaps in log C below this are within one budget
ASSUMED = 'C = 6 N D, assumed: no column of FLOPs was named'
SIX_ND = '6ND'


ARRAYS = ('params', 'tokens', 'flops', 'loss', 'curve')


class Runs(NamedTuple):
    """One row a run, or a point of a training curve: all [R], float64.

    loss is in nats; curve labels the training run that a row is of; convention says how FLOPs
    were counted; skipped counts the rows of runs that have no result.
    """

    params: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    curve: np.ndarray
    convention: str = ASSUMED
    skipped: int = 0

    @property
    def cost(self) -> float:
        """The geometric mean of C / (N D): 6 only where that is how C was counted."""
        return float(np.exp(np.mean(np.log(self.flops / self.params / self.tokens))))

    def take(self, rows: np.ndarray) -> 'Runs':
        """Those rows (a mask or indices)."""
        return _like(self, [getattr(self, name)[rows] for name in ARRAYS])


def join(one: Runs, other: Runs) -> Runs:
    """The rows of both, under the convention of the first."""
    return _like(
        one, [np.concatenate([getattr(one, name), getattr(other, name)]) for name in ARRAYS]
    )


def _like(runs: Runs, arrays: Sequence[np.ndarray]) -> Runs:
    params, tokens, flops, loss, curve = arrays
    return Runs(params, tokens, flops, loss, curve, runs.convention, runs.skipped)


def runs(
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    flops: np.ndarray | None = None,
    convention: str = 'as given',
) -> Runs:
    """Of arrays [R]; FLOPs left out are 6 N D, and the convention says so. Raises: DataError."""
    named = {'params': params, 'tokens': tokens, 'loss': loss}
    if flops is not None:
        named['flops'] = flops
    columns = {name: np.asarray(values, np.float64) for name, values in named.items()}
    for name, values in columns.items():
        bad = ~(np.isfinite(values) & (values > 0))
        if values.ndim != 1 or values.shape != columns['params'].shape or not values.size:
            raise DataError(f'{name}: expected [R] as params, R at least 1, got {values.shape}')
        if bad.any():
            raise DataError(
                f'{name} of row {np.argmax(bad)}: expected a finite number above 0, '
                f'got {values[bad][0]:g}; leave the row out'
            )
    if flops is None:
        columns['flops'] = SIX * columns['params'] * columns['tokens']
        convention = ASSUMED
    return Runs(
        columns['params'],
        columns['tokens'],
        columns['flops'],
        columns['loss'],
        columns['params'].astype(str),
        convention,
    )


def read(
    path: Path,
    params: str = 'params',
    tokens: str = 'tokens',
    loss: str = 'loss',
    flops: str = SIX_ND,
    curve: str | None = None,
    where: Sequence[tuple[str, str]] = (),
) -> Runs:
    """The runs of a CSV file with a header.

    flops: a column, or '6ND' where C is to be 6 N D.
    curve: a column that tells training runs apart; by default they differ in N.
    where: (column, value) that a row must have.

    Rows of runs that a `status` column does not call finished are skipped where they have no loss;
    every other bad cell is an error.

    Raises: DataError, with line and column.
    """
    columns = {'params': params, 'tokens': tokens, 'loss': loss}
    if flops != SIX_ND:
        columns['flops'] = flops
    needed = [*columns.values(), *([curve] if curve else []), *(name for name, _ in where)]
    numbers: dict[str, list[float]] = {name: [] for name in columns}
    labels: list[str] = []
    skipped = 0
    for line, row in _rows(path, needed):
        if any(row[name] != value for name, value in where):
            continue
        if not row[loss] and row.get('status', 'finished') != 'finished':
            skipped += 1
            continue
        for name, column in columns.items():
            numbers[name].append(_number(row[column], f'{path} line {line}, column {column!r}'))
        labels.append(row[curve if curve else params])
    if not labels:
        asked = ' and '.join(f'{name}={value}' for name, value in where)
        raise DataError(f'{path}: no rows{" with " + asked if asked else " with a loss"}')
    arrays = {name: np.array(values) for name, values in numbers.items()}
    found = runs(**arrays, convention=f'column {flops!r}')
    return found._replace(curve=np.array(labels), skipped=skipped)


def flops_column(path: Path) -> str:
    """'flops' where the table has it, else '6ND'. Raises: DataError."""
    return 'flops' if 'flops' in columns_of(path) else SIX_ND


def condition(text: str) -> tuple[str, str]:
    """A condition as typed, COLUMN=VALUE. Raises: ConfigError."""
    column, equals, value = text.partition('=')
    if not column or not equals:
        raise ConfigError(f'--where: expected COLUMN=VALUE, got {text!r}')
    return column, value


def columns_of(path: Path) -> tuple[str, ...]:
    """The names in the header. Raises: DataError."""
    try:
        with path.open(newline='', encoding='utf-8-sig') as file:
            return tuple(next(csv.reader(file), ()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f'cannot read {path}: {error}; expected a CSV file') from error


def _rows(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    header = columns_of(path)
    for name in needed:
        if name not in header:
            raise DataError(f'{path} has no column {name!r}; {nearest(name, header)}')
    repeated = sorted({name for name in header if name in needed and header.count(name) > 1})
    if repeated:
        raise DataError(f'{path} has two columns {repeated[0]!r}; rename one')
    found: list[tuple[int, dict[str, str]]] = []
    with path.open(newline='', encoding='utf-8-sig') as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f'{path} line {reader.line_num}: expected {len(header)} cells, as the '
                        'header has; mend the line'
                    )
                found.append((reader.line_num, row))
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f'{path} line {reader.line_num}: {error}') from error
    return found


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise DataError(
            f'{where}: expected a finite number above 0, got {text!r}; mend it or leave the row out'
        )
    return value


def budgets(flops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Geometric means of the budgets [B], rising, and which of them each run is of [R]."""
    order = np.argsort(flops, kind='stable')
    logs = np.log(flops[order])
    which = np.empty(len(flops), int)
    which[order] = np.concatenate([[0], np.cumsum(np.diff(logs) > SAME_BUDGET)])
    means = [np.exp(np.mean(np.log(flops[which == index]))) for index in range(which.max() + 1)]
    return np.array(means), which
