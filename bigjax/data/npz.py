"""Arrays of a .npz file: images, vectors, series or token ids, with classes, labels or numbers.

Which of these they are is told by dtype and shape: `bigjax.data.arrays`.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigjax.data import arrays
from bigjax.data.core import Batch, Dataset
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


def load(config: Config) -> Dataset:
    """Inputs uint8 images, float32, or int32 ids. Raises: ConfigError, DataError."""
    return arrays.dataset(
        _read(config), config.path, config.num_classes, config.class_names, config.vocab_size
    )


def _read(config: Config) -> dict[str, Batch]:
    """The arrays by split; val and test may be absent."""
    if not Path(config.path).is_file():
        raise DataError(f'{config.path}: no such file; set config.data.path')
    if not zipfile.is_zipfile(config.path):
        raise DataError(f'{config.path} is not a whole .npz file (a zip archive)')
    splits: dict[str, Batch] = {}
    try:
        with np.load(config.path, allow_pickle=False) as file:
            for split in ('train', 'val', 'test') if '{split}' in config.inputs else ('train',):
                names = {
                    'inputs': config.inputs.replace('{split}', split),
                    'targets': config.targets.replace('{split}', split),
                }
                absent = [name for name in names.values() if name not in file.files]
                if not absent:
                    splits[split] = {role: file[name] for role, name in names.items()}
                elif split == 'train' or len(absent) == 1:
                    hint = nearest(absent[0], file.files)
                    raise ConfigError(f'{config.path} has no array {absent[0]!r}; {hint}')
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f'{config.path} cannot be read: {error}') from error
    return splits
