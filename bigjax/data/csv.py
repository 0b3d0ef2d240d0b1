"""A table in a CSV file with a header line, in memory.

A column whose values are all numbers is numeric, one of mostly other text categorical; a column of
numbers with something else among them is an error, by line. Empty values, NA, N/A, NaN, NULL and ?
are missing, in any case of letters.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pyarrow
from pyarrow import compute
from pyarrow import csv as arrow_csv

from bigjax.data import tabular
from bigjax.data.checks import require_utf8
from bigjax.data.core import Dataset
from bigjax.errors import ConfigError, DataError, nearest

MISSING = pyarrow.array(['', 'na', 'n/a', 'nan', 'null', '?'])
NUMBER = r'^-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$'
INTEGER = r'^-?\d{1,18}$'
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
    texts = _read(config)
    _check_names(config, texts)
    inputs = {
        name: _values(config, name, column)
        for name, column in texts.items()
        if name not in {config.target, *config.ignore}
    }
    if not inputs:
        raise DataError(f'{config.path}: no columns are left to predict {config.target!r} from')
    targets, class_names = _targets(config, texts[config.target])
    return tabular.dataset(inputs, targets, class_names, config.impute, config.missing_indicators)


def _read(config: Config) -> dict[str, Column]:
    """Columns by name. Raises: DataError for a file that is not a table with a header."""
    if not Path(config.path).is_file():
        raise DataError(f'{config.path}: no such file; set config.data.path')
    require_utf8(Path(config.path).read_bytes(), config.path)
    line, header = next(_records(config), (1, []))
    names = [name.strip() for name in header]
    if '' in names or len(set(names)) < len(names):
        raise DataError(
            f'{config.path} line {line}: each column needs a name of its own, '
            f'got {", ".join(names)}'
        )
    parse = arrow_csv.ParseOptions(delimiter=config.delimiter, newlines_in_values=True)
    convert = arrow_csv.ConvertOptions(column_types=dict.fromkeys(header, pyarrow.string()))
    try:
        table = arrow_csv.read_csv(config.path, parse_options=parse, convert_options=convert)
    except pyarrow.ArrowInvalid as error:
        for line, record in _records(config):
            if len(record) != len(names):
                raise DataError(
                    f'{config.path} line {line}: expected {len(names)} values as in the header, '
                    f'got {len(record)}'
                ) from None
        raise DataError(f'{config.path} is not a CSV table: {error}') from None
    if not table.num_rows:
        raise DataError(f'{config.path}: a header but no records')
    return {name: _texts(column) for name, column in zip(names, table.columns, strict=True)}


def _texts(column: pyarrow.ChunkedArray) -> Column:
    text = compute.utf8_trim_whitespace(column.combine_chunks())
    missing = compute.is_in(compute.utf8_lower(text), value_set=MISSING)
    return compute.if_else(missing, None, text)


def _records(config: Config) -> Iterator[tuple[int, list[str]]]:
    """The line on which a record begins, and its values; blank lines are none.

    Arrow is fast, but tells no lines: this is to say where a fault is.
    """
    with open(config.path, encoding='utf-8-sig', newline='') as lines:
        reader = csv.reader(lines, delimiter=config.delimiter)
        line = 1
        for record in reader:
            if record:
                yield line, record
            line = reader.line_num + 1


def _fault(config: Config, row: int, name: str, expected: str, got: str) -> DataError:
    """What is wrong with one value of one row (from 0)."""
    line, _ = next(islice(_records(config), row + 1, None))
    return DataError(f'{config.path} line {line}: column {name}: expected {expected}, got {got}')


def _check_names(config: Config, columns: dict[str, Column]) -> None:
    home: dict[str, str] = {}
    for field in ('target', 'numeric', 'categorical', 'ignore'):
        names = getattr(config, field)
        for name in [names] if field == 'target' else names:
            if name not in columns:
                hint = nearest(name, columns)
                raise ConfigError(f'config.data.{field}: no column {name!r} in the file; {hint}')
            if name in home:
                raise ConfigError(f'column {name!r} is in config.data.{home[name]} and in .{field}')
            home[name] = field


def _values(config: Config, name: str, column: Column) -> np.ndarray:
    """An input column: float64 with NaN, or text, '' where it is missing."""
    if name not in config.categorical:
        cure = 'if this column is not numeric, set config.data.categorical'
        numbers = _numbers(config, name, column, name in config.numeric, cure)
        if numbers is not None:
            return numbers
        if (count := len(column.unique())) > MAX_INFERRED_CATEGORIES:
            raise DataError(
                f'{config.path}: column {name} has {count} different texts; list it in '
                f'config.data.ignore, or in config.data.categorical if they are categories'
            )
    return column.fill_null('').to_numpy(zero_copy_only=False)


def _numbers(
    config: Config, name: str, column: Column, required: bool, cure: str
) -> np.ndarray | None:
    """float64 [N], NaN where missing; None if most are no numbers, which are not required either.

    Raises: DataError for a value that is no finite number, or none of float32.
    """
    is_number = compute.match_substring_regex(column, NUMBER)
    numbers = compute.if_else(is_number, column, None).cast(pyarrow.float64())
    numbers = numbers.to_numpy(zero_copy_only=False)
    fits = np.abs(numbers) <= np.finfo(np.float32).max
    wrong = np.flatnonzero(np.asarray(column.is_valid()) & ~fits)
    if len(wrong) > (len(column) - column.null_count) / 2 and not required:
        return None
    for row in wrong[:1]:
        raise _fault(config, row, name, 'a finite number', f'"{column[row]}"; {cure}')
    return numbers


def _targets(config: Config, column: Column) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class ids int32 [N] and the names of the classes, or float32 [N] and none."""
    for row in np.flatnonzero(np.asarray(column.is_null()))[:1]:
        raise _fault(config, row, config.target, 'a value, for it is the target', 'none')
    integers = compute.all(compute.match_substring_regex(column, INTEGER)).as_py()
    if config.target_type == 'numbers' or (config.target_type is None and not integers):
        required = config.target_type == 'numbers'
        cure = 'if it names a class, set config.data.target_type=classes'
        numbers = _numbers(config, config.target, column, required, cure)
        if numbers is not None:
            return numbers.astype(np.float32), ()
    values = column.cast(pyarrow.int64()) if integers else column
    classes, ids = np.unique(values.to_numpy(zero_copy_only=False), return_inverse=True)
    if len(classes) < 2:
        raise DataError(f'{config.path}: column {config.target}: every target is {column[0]}')
    return ids.astype(np.int32), tuple(map(str, classes))
