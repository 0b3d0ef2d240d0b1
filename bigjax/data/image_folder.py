"""Folders of images: one folder a class, or one folder a split that holds one folder a class.

Decoded and resized once, in parallel, into a cache that is keyed by the names, sizes and times of
the files.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from bigjax.data import cache, images
from bigjax.data.core import ArraySource, Batch, Dataset, Source
from bigjax.errors import DataError
from bigjax.schema import NonNegativeInt, PositiveInt

logger = logging.getLogger(__name__)

SUFFIXES = frozenset(('.png', '.jpg', '.jpeg', '.webp', '.bmp'))
SPLITS = ('train', 'validation', 'val', 'test')


@dataclass(frozen=True)
class Config:
    """
    path: the folder; without folders train, validation, val or test in it, all is `train`.
    image_size: (height, width); images are scaled to cover it and cropped evenly.
    max_corrupt: so many images that cannot be decoded are left out; one more is an error.
    cache_dir: where decoded images are kept; by default the user's cache folder.
    """

    path: str
    image_size: tuple[PositiveInt, PositiveInt]
    channels: Literal[1, 3] = 3
    max_corrupt: NonNegativeInt = 0
    cache_dir: str | None = None


def load(config: Config) -> Dataset:
    """uint8 images [H, W, C] and int32 labels; classes are the sorted names of their folders."""
    top = Path(config.path).expanduser()
    if not top.is_dir():
        raise DataError(
            f'no folder {top}; set config.data.path to a folder with one folder a class'
        )
    splits = {name: top / name for name in SPLITS if (top / name).is_dir()} or {'train': top}
    if 'train' not in splits:
        raise DataError(f'{top} has {", ".join(splits)} but no folder train; add it')
    classes = _class_names(splits['train'])
    sources = {name: _source(config, name, folder, classes) for name, folder in splits.items()}
    return images.dataset(sources, len(classes), classes)


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(
        sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != '.')
    )


def _source(config: Config, split: str, folder: Path, classes: tuple[str, ...]) -> Source:
    if unknown := sorted(set(_class_names(folder)) - set(classes)):
        raise DataError(f'{folder / unknown[0]}: split {split!r} has a class that train has not')
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob('*'))
        if path.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise DataError(f'no images ({", ".join(sorted(SUFFIXES))}) in {folder}/<class>/')
    stats = [(str(path.relative_to(folder)), path.stat()) for path, _ in files]
    key = {
        'files': [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        'image_size': config.image_size,
        'channels': config.channels,
        'max_corrupt': config.max_corrupt,
    }
    corrupt: list[Path] = []

    def decode(some: Sequence[tuple[Path, int]]) -> Batch:
        inputs, targets = [], []
        for path, label in some:
            try:
                inputs.append(images.decode(path, config.image_size, config.channels))
                targets.append(label)
            except images.DECODE_ERRORS as error:
                corrupt.append(path)
                fault = f'{path}: not a readable image ({error})'
                if len(corrupt) > min(config.max_corrupt, len(files) - 1):
                    raise DataError(
                        f'{fault}; {len(corrupt)} of {len(files)} are corrupt: mend or delete '
                        f'them, or leave out more than config.data.max_corrupt={config.max_corrupt}'
                    ) from error
                logger.warning('%s; left out', fault)
        pixels = np.array(inputs, np.uint8).reshape(-1, *config.image_size, config.channels)
        return {'inputs': pixels, 'targets': np.array(targets, np.int32)}

    root, name = cache.root(config.cache_dir), f'{Path(config.path).name}-{split}'
    rows = cache.rows(root, name, key, decode, lambda: files)
    if skipped := len(files) - len(rows['targets']):
        logger.warning('%s: %d of %d images were corrupt and left out', folder, skipped, len(files))
    return ArraySource(rows)
