"""Records from files, TFDS and Hugging Face data sets: tuples of the columns that are asked for.

    corpus.txt, folder/, *.txt     plain text: one column, whatever it is called
    *.jsonl, *.jsonl.gz            one object a line
    *.parquet
    *.csv, *.tsv                   columns by name, or by number (from 0) where there is no header
    tfds:NAME, hf:PATH_OR_NAME     prepared by TFDS; by `datasets`, or saved by its save_to_disk
    stdlib                         the source of Python's own library

A path with `{split}` in it, and a data set of the last three kinds, has splits of its own.
"""

import csv
import functools
import glob
import gzip
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet

from bigjax.data.checks import require_utf8
from bigjax.errors import ConfigError, DataError, EnvironmentProblem, nearest

Column = str | int
Columns = tuple[Column, ...]
Document = Literal['file', 'line', 'paragraph']

STDLIB = 'stdlib'
NOT_LIBRARY = {
    'site-packages', 'dist-packages', 'test', 'tests', 'idlelib', 'lib2to3', 'turtledemo',
    '__pycache__',
}  # fmt: skip
SPLITS = {'train': ('train',), 'val': ('val', 'validation', 'valid', 'dev'), 'test': ('test',)}
"""What `{split}` in a path may stand for."""


@dataclass(frozen=True)
class Part:
    """Records of one place: a file, or a split of a data set.

    key: plain values that change when the records do. size: in bytes, where it is known.
    """

    where: str
    key: Any
    read: Callable[[Columns], Iterator[tuple]]
    size: int = 0


def find(
    paths: Sequence[str],
    pattern: str = '**/*.txt',
    document: Document = 'file',
    header: bool | None = None,
) -> dict[str, list[Part]]:
    """The parts of every split there is; all is train where nothing is said of splits.

    document: what is a record of plain text. header: of CSV files; None: if columns have names.
    Raises: DataError, EnvironmentProblem.
    """
    found: dict[str, list[Part]] = {}
    for path in paths:
        scheme, _, name = path.partition(':')
        if scheme in _DATA_SETS:
            parts = _DATA_SETS[scheme](name)
        else:
            splits = SPLITS if '{split}' in path else {'train': ('train',)}
            files = {
                split: [f for name in names for f in _files(path.replace('{split}', name), pattern)]
                for split, names in splits.items()
            }
            if not files['train']:
                wanted = path.replace('{split}', 'train')
                raise DataError(f'config.data.path: no file matches {wanted!r}')
            parts = {
                split: [_file_part(file, document, header) for file in some]
                for split, some in files.items()
                if some
            }
        for split, some in parts.items():
            found.setdefault(split, []).extend(some)
    return found


def _files(path: str, pattern: str) -> list[str]:
    if path == STDLIB:
        return sorted(_stdlib_files())
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        path = os.path.join(glob.escape(path), pattern)
    return sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))


def _stdlib_files() -> Iterator[str]:
    """Modules of the library itself: no installed packages, no tests, nothing of one machine."""
    for folder, subfolders, names in os.walk(os.path.dirname(os.__file__)):
        subfolders[:] = [name for name in subfolders if name not in NOT_LIBRARY]
        for name in names:
            if name.endswith('.py') and not name.startswith('_sysconfigdata'):
                yield os.path.join(folder, name)


def _file_part(file: str, document: Document, header: bool | None) -> Part:
    readers: Mapping[str, Callable[..., Iterator[tuple]]] = {
        '.jsonl': _json_lines,
        '.gz': _json_lines,
        '.parquet': _parquet,
        '.csv': functools.partial(_table, header=header),
        '.tsv': functools.partial(_table, header=header),
    }
    suffix = Path(file).suffix
    if suffix == '.gz' and not file.endswith('.jsonl.gz'):
        raise DataError(f'{file}: of compressed files only .jsonl.gz is read; unpack it')
    read = readers.get(suffix, functools.partial(_plain, document=document))
    stat = os.stat(file)
    key = [os.path.abspath(file), stat.st_size, stat.st_mtime_ns]
    return Part(file, key, functools.partial(read, file), stat.st_size)


def _plain(file: str, columns: Columns, document: Document) -> Iterator[tuple[str]]:
    data = Path(file).read_bytes()
    require_utf8(data, file)
    text = data.decode()
    if document == 'file':
        yield (text,)
        return
    separator = r'\r?\n' if document == 'line' else r'\r?\n[ \t]*(?:\r?\n[ \t]*)+'
    for part in re.split(separator, text):
        if part.strip():
            yield (part,)


def _json_lines(file: str, columns: Columns) -> Iterator[tuple]:
    with gzip.open(file) if file.endswith('.gz') else open(file, 'rb') as lines:
        try:
            for number, line in enumerate(lines, 1):
                where = f'{file} line {number}'
                require_utf8(line, where)
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise DataError(f'{where}: expected a JSON object: {error}') from None
                if not isinstance(record, dict):
                    raise DataError(f'{where}: expected a JSON object, got {line[:40].decode()!r}')
                yield tuple(_value(record, column, where) for column in columns)
        except (OSError, EOFError) as error:  # a damaged archive
            raise DataError(f'{file} cannot be read: {error}') from error


def _value(record: Mapping, column: Column, where: str) -> Any:
    if record.get(column) is None:
        raise DataError(f'{where}: no value for {column!r}; {nearest(str(column), record)}')
    return record[column]


def _parquet(file: str, columns: Columns) -> Iterator[tuple]:
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            _require_columns(columns, table.schema_arrow.names, file)
            row = 0
            for batch in table.iter_batches(columns=list(columns), batch_size=1024):
                for record in batch.to_pylist():
                    yield tuple(_value(record, name, f'{file}, record {row}') for name in columns)
                    row += 1
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f'{file} cannot be read: {str(error).splitlines()[0]}') from error


def _require_columns(columns: Columns, known: Sequence[str], where: str) -> None:
    for column in columns:
        if column not in known:
            raise ConfigError(f'{where} has no column {column!r}; {nearest(str(column), known)}')


def _table(file: str, columns: Columns, header: bool | None) -> Iterator[tuple]:
    """Tab-separated values hold no quoting: a quotation mark is one."""
    numbers = [int(column) for column in columns if str(column).isdigit()]
    if header is None:
        header = not numbers
    require_utf8(Path(file).read_bytes(), file)
    with open(file, encoding='utf-8-sig', newline='') as lines:
        if file.endswith('.tsv'):
            reader = csv.reader(lines, delimiter='\t', quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(lines)
        names = next(reader, []) if header else []
        if not numbers:
            _require_columns(columns, names, file)
            numbers = [names.index(str(column)) for column in columns]
        elif len(numbers) < len(columns):
            raise ConfigError(f'{file}: columns go by name or by number, not {columns}')
        width = len(names)
        try:
            for record in reader:
                width = width or len(record)
                if len(record) != width or max(numbers) >= width:
                    raise DataError(
                        f'{file} line {reader.line_num}: expected {max(width, max(numbers) + 1)} '
                        f'values, got {len(record)}'
                    )
                yield tuple(record[number] for number in numbers)
        except csv.Error as error:
            raise DataError(f'{file} line {reader.line_num}: {error}') from error


def _tfds(name: str) -> dict[str, list[Part]]:
    from bigjax.data import tfds

    builder = tfds.prepared_builder(name, os.environ.get('TFDS_DATA_DIR'))

    def read(split: str, columns: Columns) -> Iterator[tuple]:
        _require_columns(columns, list(builder.info.features), f'tfds:{name}')
        for record in tfds.records_of(builder, split):
            values = (record[column] for column in columns)
            yield tuple(v.decode() if isinstance(v, bytes) else v for v in values)

    return {
        split: [
            Part(
                f'tfds:{name}/{split}',
                tfds.split_key(builder, split),
                functools.partial(read, split),
                info.num_bytes,
            )
        ]
        for split, info in builder.info.splits.items()
    }


def _hugging_face(name: str) -> dict[str, list[Part]]:
    try:
        import datasets
    except ImportError:
        raise EnvironmentProblem(
            f"hf:{name} needs the package datasets; pip install 'bigjax[hf]'"
        ) from None
    saved = any((Path(name) / f).is_file() for f in ('dataset_dict.json', 'state.json'))
    try:
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f'hf:{name} cannot be loaded: {" ".join(str(error).split())}') from error
    splits = loaded if isinstance(loaded, dict) else {'train': loaded}

    def read(split: str, columns: Columns) -> Iterator[tuple]:
        _require_columns(columns, splits[split].column_names, f'hf:{name}')
        for row, record in enumerate(splits[split].select_columns(list(columns))):
            yield tuple(_value(record, column, f'hf:{name}/{split}, {row}') for column in columns)

    return {
        split: [
            Part(
                f'hf:{name}/{split}',
                [name, split, data._fingerprint],
                functools.partial(read, split),
                data.data.nbytes,
            )
        ]
        for split, data in splits.items()
    }


_DATA_SETS: Mapping[str, Callable[[str], dict[str, list[Part]]]] = {
    'tfds': _tfds,
    'hf': _hugging_face,
}
