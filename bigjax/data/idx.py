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

from bigjax.data import images
from bigjax.data.checks import require_below
from bigjax.data.core import ArraySource, Batch, Dataset
from bigjax.errors import DataError

UINT8 = 8


def _mnist_files() -> dict[str, tuple[str, str]]:
    prefixes = {'train': 'train', 'test': 't10k'}
    return {
        split: (f'{prefix}-images-idx3-ubyte', f'{prefix}-labels-idx1-ubyte')
        for split, prefix in prefixes.items()
    }


@dataclass(frozen=True)
class Config:
    """
    path: the folder of the files.
    files: split -> (images, labels), names in that folder, with or without their '.gz'.
    class_names: in the order of the labels; by default the labels are numbered.
    """

    path: str
    files: Mapping[str, tuple[str, str]] = field(default_factory=_mnist_files)
    class_names: tuple[str, ...] = ()


def load(config: Config) -> Dataset:
    """uint8 images [H, W, C] (C is 1 unless the file has four dimensions) and int32 labels."""
    folder = Path(config.path).expanduser()
    splits = {split: _read_split(folder, *files) for split, files in config.files.items()}
    num_classes = len(config.class_names) or 1 + max(
        int(rows['targets'].max(initial=0)) for rows in splits.values()
    )
    for split, rows in splits.items():
        require_below(rows['targets'], num_classes, f'{folder / config.files[split][1]}')
    sources = {name: ArraySource(rows) for name, rows in splits.items()}
    return images.dataset(sources, num_classes, config.class_names)


def _read_split(folder: Path, images_name: str, labels_name: str) -> Batch:
    inputs = read(_find(folder, images_name), ndim=(3, 4))
    targets = read(_find(folder, labels_name), ndim=(1,))
    if len(inputs) != len(targets):
        raise DataError(
            f'{folder}: {images_name} holds {len(inputs)} images, {labels_name} {len(targets)} '
            f'labels; they must belong together'
        )
    inputs = inputs[..., np.newaxis] if inputs.ndim == 3 else inputs
    return {'inputs': inputs, 'targets': targets.astype(np.int32)}


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f'{name}.gz'):
        if path.is_file():
            return path
    raise DataError(
        f'no file {name} or {name}.gz in {folder}; set config.data.path, or '
        f'config.data.files.<split>=IMAGES,LABELS'
    )


def read(path: Path, ndim: tuple[int, ...]) -> np.ndarray:
    """The uint8 array of an IDX file. Raises: DataError naming the file and the byte offset."""
    content = _decompressed(path)
    if content[:3] != bytes([0, 0, UINT8]) or len(content) < 4 or content[3] not in ndim:
        expected = ' or '.join(f'00 00 08 {n:02x}' for n in ndim)
        raise DataError(
            f'{path}, offset 0: expected {expected} (uint8 of {" or ".join(map(str, ndim))} '
            f'dimensions), got {content[:4].hex(" ") or "an empty file"}; is it an IDX file?'
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


def _decompressed(path: Path) -> bytes:
    """The content of a file, unzipped if it is gzipped."""
    content = path.read_bytes()
    if content[:2] != b'\x1f\x8b':
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(
            f'{path}, {len(content)} bytes: damaged gzip data ({error}); fetch it again'
        ) from error
