"""IDX files, the format of MNIST and its successors, gzipped or not.

The format (LeCun, Cortes, Burges: the MNIST database): two zero bytes, a type code, the number of
dimensions, each dimension as a big-endian uint32, then the elements. Images have type 8 (uint8) and
dimensions [N, H, W] or [N, H, W, C], labels have type 8 and dimension [N].
"""

import gzip
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bigjax.data import arrays
from bigjax.data.core import Dataset
from bigjax.errors import DataError
from bigjax.safety import child

UINT8 = 8
GZIP = b'\x1f\x8b'


MNIST = {
    'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
    'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
}


@dataclass(frozen=True)
class Config:
    """
    path: the folder of the files.
    files: split -> (images, labels), names in that folder, with or without their '.gz'.
    class_names: in the order of the labels; by default the labels are numbered.
    """

    path: str
    files: Mapping[str, tuple[str, str]] = field(default_factory=lambda: MNIST)
    class_names: tuple[str, ...] = ()


def load(config: Config) -> Dataset:
    """uint8 images [H, W, C] (C is 1 unless the file has four dimensions) and int32 labels."""
    folder = Path(config.path).expanduser()
    splits = {
        split: {
            'inputs': read(_find(folder, images), ndim=(3, 4)),
            'targets': read(_find(folder, labels), ndim=(1,)),
        }
        for split, (images, labels) in config.files.items()
    }
    return arrays.dataset(splits, str(folder), class_names=config.class_names)


def _find(folder: Path, name: str) -> Path:
    for path in (child(folder, name, 'config.data.files'), folder / f'{name}.gz'):
        if path.is_file():
            return path
    raise DataError(
        f'no file {name} or {name}.gz in {folder}; set config.data.path, or '
        f'config.data.files.<split>=IMAGES,LABELS'
    )


def read(path: Path, ndim: tuple[int, ...]) -> np.ndarray:
    """The uint8 array of an IDX file. Raises: DataError naming the file and the byte offset."""
    content = path.read_bytes()
    if content.startswith(GZIP):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f'{path}: damaged gzip data ({error}); fetch it again') from error
    magic = [bytes([0, 0, UINT8, n]) for n in ndim]
    if content[:4] not in magic:
        expected = ' or '.join(form.hex(' ') for form in magic)
        raise DataError(
            f'{path}, offset 0: expected {expected} (uint8, number of dimensions), '
            f'got {content[:4].hex(" ") or "an empty file"}; is it an IDX file?'
        )
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start].ljust(start - 4, b'\0'), '>u4').tolist()
    size = start + math.prod(shape)
    if len(content) != size:
        what = 'ends' if len(content) < size else 'goes on'
        raise DataError(
            f'{path}, offset {min(len(content), size)}: the file {what} here; its header announces '
            f'dimensions {shape}, so {size} bytes, and it holds {len(content)}; fetch it again'
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
