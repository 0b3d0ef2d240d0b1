"""Arrays of a .npz file: images, vectors, series or token ids, with classes, labels or numbers.

By dtype: inputs uint8 [N, H, W(, C)] are images, other integers token ids, the rest numbers.
Targets of integers are class ids [N], or zeros and ones [N, C] of labels; floats are numbers.
"""

import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bigjax.data import images
from bigjax.data.checks import require_below, require_finite
from bigjax.data.core import ArraySource, Dataset, DataSpec, Source, Transform
from bigjax.errors import ConfigError, DataError, nearest
from bigjax.schema import PositiveInt


@dataclass(frozen=True)
class Config:
    """inputs, targets: names of arrays. With `{split}` in them ('x_{split}') the file holds splits:
    x_train, and x_val and x_test if it has them; without, all rows are train.

    num_classes, vocab_size: by default one more than the largest id.
    """

    path: str
    inputs: str = 'inputs'
    targets: str = 'targets'
    num_classes: PositiveInt | None = None
    vocab_size: PositiveInt | None = None
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Named:
    """An array, and what to call it in a message."""

    array: np.ndarray
    where: str


def load(config: Config) -> Dataset:
    """Inputs uint8 images, float32, or int32 ids. Raises: ConfigError, DataError."""
    splits = ('train', 'val', 'test') if '{split}' in config.inputs else ('train',)
    inputs, targets = _read(config, config.inputs, splits), _read(config, config.targets, splits)
    for split in inputs.keys() | targets.keys():
        rows = [len(named[split].array) if split in named else 0 for named in (inputs, targets)]
        if rows[0] != rows[1]:
            raise DataError(f'{config.path}, {split}: {rows[0]} inputs but {rows[1]} targets')

    vocab_size = num_classes = None
    if inputs['train'].array.dtype.kind in 'iu' and inputs['train'].array.dtype != np.uint8:
        vocab_size = config.vocab_size or _num_ids(inputs)
    if targets['train'].array.dtype.kind in 'iub':
        labels = targets['train'].array.shape[1:]
        num_classes = config.num_classes or len(config.class_names) or _num_ids(targets)
        num_classes = labels[0] if labels else num_classes
    sources = {
        split: ArraySource(
            {
                'inputs': _inputs(inputs[split], vocab_size),
                'targets': _targets(targets[split], num_classes),
            }
        )
        for split in inputs
    }
    dataset = images.dataset(sources, num_classes, config.class_names)

    def prepare(train: Source) -> tuple[DataSpec, Transform]:
        spec, transform = dataset.prepare(train)
        tokens = spec.inputs.shape[0] if vocab_size else None
        return replace(spec, vocab_size=vocab_size, tokens=tokens), transform

    return replace(dataset, prepare=prepare)


def _read(config: Config, pattern: str, splits: tuple[str, ...]) -> dict[str, Named]:
    """The arrays by split; val and test may be absent."""
    if not Path(config.path).is_file():
        raise DataError(f'{config.path}: no such file; set config.data.path')
    if not zipfile.is_zipfile(config.path):
        raise DataError(f'{config.path} is not a whole .npz file (a zip archive)')
    found: dict[str, Named] = {}
    try:
        with np.load(config.path, allow_pickle=False) as file:
            for split in splits:
                name = pattern.replace('{split}', split)
                if name in file.files:
                    found[split] = Named(file[name], f'{config.path}, {name}')
                elif split == 'train':
                    hint = nearest(name, file.files)
                    raise ConfigError(f'{config.path} has no array {name!r}; {hint}')
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f'{config.path} cannot be read: {error}') from error
    for named in found.values():
        if named.array.dtype.kind != found['train'].array.dtype.kind:
            raise DataError(
                f'{named.where}: expected dtype {found["train"].array.dtype}, as in train, '
                f'got {named.array.dtype}'
            )
    return found


def _num_ids(arrays: dict[str, Named]) -> int:
    return 1 + max(int(named.array.max(initial=0)) for named in arrays.values())


def _inputs(named: Named, vocab_size: int | None) -> np.ndarray:
    array = named.array
    if array.ndim < 2:
        raise DataError(f'{named.where}: expected shape [records, ...], got {list(array.shape)}')
    if vocab_size:
        require_below(array, vocab_size, named.where)
        return array.astype(np.int32)
    if array.dtype == np.uint8 and array.ndim in (3, 4):
        return array[..., None] if array.ndim == 3 else array
    return _numbers(named)


def _targets(named: Named, num_classes: int | None) -> np.ndarray:
    array = named.array
    if array.ndim not in (1, 2):
        raise DataError(
            f'{named.where}: expected shape [records] or [records, C], got {list(array.shape)}'
        )
    if not num_classes:
        return _numbers(named)
    require_below(array, num_classes if array.ndim == 1 else 2, named.where)
    return array.astype(np.int32 if array.ndim == 1 else np.float32)


def _numbers(named: Named) -> np.ndarray:
    if named.array.dtype.kind not in 'fiub':
        raise DataError(f'{named.where}: expected numbers, got dtype {named.array.dtype}')
    numbers = named.array.astype(np.float32)
    require_finite(numbers, named.where)
    return numbers
