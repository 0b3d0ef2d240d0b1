"""A table in a CSV file with a header line, in memory.

A column whose values are all numbers is numeric, one of mostly other text categorical; a column of
numbers with something else among them is an error, by line. Empty values, NA, N/A, NaN, NULL and ?
are missing, in any case of letters.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.csv

from bigjax.data import tabular
from bigjax.data.checks import require_utf8
from bigjax.data.core import Dataset
from bigjax.errors import ConfigError, DataError, nearest

MISSING = pyarrow.array(['', 'na', 'n/a', 'nan', 'null', '?'])
NUMBER = r'^(-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?)$'
INTEGER = r'^-?\d+$'
MAX_INFERRED_CATEGORIES = 256

Column: TypeAlias = pyarrow.StringArray
"""The text of each value, null where it is missing."""


@dataclass(frozen=True)
class Config:
    """target: the column to predict. target_type: classes unless its values are fractional numbers.

    numeric, categorical: columns whose kind is not to be inferred. ignore: columns left out.
    impute: the training statistic that stands for missing numbers; missing_indicators: a column of
    0 and 1 for each numeric column with missing values.
    """

    path: str
    target: str
    target_type: Literal['classes', 'numbers'] | None = None
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    delimiter: Literal[',', ';', '\t', '|'] = ','
    impute: tabular.Statistic = 'mean'
    missing_indicators: bool = False


def load(config: Config) -> Dataset:
    """Inputs float32 [F]; targets are class ids, or float32. Raises: ConfigError, DataError."""
    file = File(config.path, config.delimiter)
    columns = file.read()
    _check_names(config, columns)
    targets, class_names = _targets(file, config, columns[config.target])
    numeric, categorical = {}, {}
    for name, column in columns.items():
        if name == config.target or name in config.ignore:
            continue
        if name not in config.categorical and (
            name in config.numeric or _is_numeric(file, name, column, 'config.data.categorical')
        ):
            numeric[name] = _numbers(file, name, column)
        else:
            categorical[name] = _categories(config, name, column)
    table = tabular.Table(numeric, categorical, targets, class_names)
    return tabular.dataset(table, config.impute, config.missing_indicators)


@dataclass(frozen=True)
class File:
    """Read fast by Arrow, which tells no lines; read again by `csv` to say where a fault is."""

    path: str
    delimiter: str

    def read(self) -> dict[str, Column]:
        """Columns by name. Raises: DataError for a file that is not a table with a header."""
        if not Path(self.path).is_file():
            raise DataError(f'{self.path}: no such file; set config.data.path')
        try:
            header = self._header()
            table = pyarrow.csv.read_csv(
                self.path,
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=self.delimiter, newlines_in_values=True
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(header, pyarrow.string())
                ),
            )
        except (pyarrow.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
            raise self._diagnose(error) from error
        if not table.num_rows:
            raise DataError(f'{self.path}: a header but no records')
        return {
            name.strip(): _without_missing(column.combine_chunks())
            for name, column in zip(header, table.columns, strict=True)
        }

    def fault(self, row: int, column: str, expected: str, got: str) -> DataError:
        """What is wrong with one value of one row (from 0)."""
        for index, (line, _) in enumerate(self._records()):
            if index == row + 1:
                return DataError(
                    f'{self.path} line {line}: column {column}: expected {expected}, got {got}'
                )
        raise IndexError(row)

    def _header(self) -> list[str]:
        line, header = next(self._records(), (1, []))
        names = [name.strip() for name in header]
        if not names:
            raise DataError(f'{self.path}: the file is empty')
        for position, name in enumerate(names):
            if not name:
                raise DataError(
                    f'{self.path} line {line}: column {position + 1} has no name in the header'
                )
            if name in names[:position]:
                raise DataError(
                    f'{self.path} line {line}: two columns are called {name!r}; rename one'
                )
        return header

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """The line on which a record begins, and its values; blank lines are none."""
        with open(self.path, encoding='utf-8-sig', newline='') as lines:
            reader = csv.reader(lines, delimiter=self.delimiter)
            line = 1
            for record in reader:
                if record:
                    yield line, record
                line = reader.line_num + 1

    def _diagnose(self, error: Exception) -> DataError:
        require_utf8(Path(self.path).read_bytes(), self.path)
        width = 0
        for line, record in self._records():
            width = width or len(record)
            if len(record) != width:
                return DataError(
                    f'{self.path} line {line}: expected {width} values as in the header, '
                    f'got {len(record)}'
                )
        return DataError(f'{self.path} is not a CSV table: {str(error).splitlines()[0]}')


def _without_missing(column: pyarrow.StringArray) -> Column:
    trimmed = pyarrow.compute.utf8_trim_whitespace(column)
    missing = pyarrow.compute.is_in(pyarrow.compute.utf8_lower(trimmed), value_set=MISSING)
    return pyarrow.compute.if_else(missing, None, trimmed)


def _check_names(config: Config, columns: dict[str, Column]) -> None:
    lists = {
        'target': (config.target,),
        'numeric': config.numeric,
        'categorical': config.categorical,
        'ignore': config.ignore,
    }
    home: dict[str, str] = {}
    for field, names in lists.items():
        for name in names:
            if name not in columns:
                hint = nearest(name, columns)
                raise ConfigError(f'config.data.{field}: no column {name!r} in the file; {hint}')
            if name in home:
                raise ConfigError(f'column {name!r} is in config.data.{home[name]} and in .{field}')
            home[name] = field
    if not set(columns) - {config.target, *config.ignore}:
        raise DataError(f'{config.path}: no columns are left to predict {config.target!r} from')


def _is_numeric(file: File, name: str, column: Column, cure: str) -> bool:
    """All values are numbers, or most are not. Raises: DataError in between."""
    wrong = _mismatches(column, NUMBER)
    if not len(wrong):
        return True
    if len(wrong) > (len(column) - column.null_count) / 2:
        return False
    got = f'"{column[wrong[0]]}"; if this column is not numeric, set {cure}'
    raise file.fault(wrong[0], name, 'a number', got)


def _mismatches(column: Column, pattern: str) -> np.ndarray:
    """Rows with a value that does not match."""
    matches = pyarrow.compute.match_substring_regex(column, pattern, ignore_case=True)
    return np.flatnonzero(~pyarrow.compute.fill_null(matches, True).to_numpy(zero_copy_only=False))


def _numbers(file: File, name: str, column: Column) -> np.ndarray:
    """float64 [N], NaN where missing. Raises: DataError for what is no finite number."""
    for row in _mismatches(column, NUMBER)[:1]:
        raise file.fault(row, name, 'a number', f'"{column[row]}"')
    numbers = column.cast(pyarrow.float64()).to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(np.isinf(numbers))[:1]:
        raise file.fault(row, name, 'a finite number', f'"{column[row]}"')
    return numbers


def _categories(config: Config, name: str, column: Column) -> tuple[np.ndarray, list[str]]:
    encoded = column.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    if name not in config.categorical and len(names) > MAX_INFERRED_CATEGORIES:
        raise DataError(
            f'{config.path}: column {name} has {len(names)} different texts; list it in '
            f'config.data.ignore, or in config.data.categorical if they are categories'
        )
    return encoded.indices.fill_null(-1).to_numpy(), names


def _targets(file: File, config: Config, column: Column) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class ids int32 [N] and the names of the classes, or float32 [N] and none."""
    for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[:1]:
        raise file.fault(row, config.target, 'a value, for it is the target', 'none')
    integers = not len(_mismatches(column, INTEGER))
    if config.target_type == 'numbers' or (
        config.target_type is None
        and not integers
        and _is_numeric(file, config.target, column, 'config.data.target_type=classes')
    ):
        return _numbers(file, config.target, column).astype(np.float32), ()
    encoded = column.dictionary_encode()
    values = encoded.dictionary.to_pylist()
    if len(values) < 2:
        raise DataError(f'{config.path}: column {config.target}: every target is {values[0]!r}')
    order = sorted(range(len(values)), key=lambda i: int(values[i]) if integers else values[i])
    ids = np.argsort(order).astype(np.int32)
    return ids[encoded.indices.to_numpy()], tuple(values[index] for index in order)
