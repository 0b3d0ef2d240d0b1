"""What data sets of images have in common: decoding, labels, and statistics of the training split.

Shapes: H height, W width, C channels.
"""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageOps

from bigjax.data.core import (
    Batch,
    Dataset,
    DataSpec,
    Source,
    Subset,
    Transform,
    everything,
    rowwise,
)

DECODE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a damaged file, an unknown format or a decompression bomb."""

STATISTICS_ROWS = 65_536
"""Mean and deviation of a larger training split are taken from this many rows, evenly spaced."""


def decode(encoded: bytes | Path, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """An image file (its bytes or its path) as uint8 [H, W, C], turned upright.

    size: (height, width); the image is scaled to cover it and the overhang cropped evenly.
    channels: 1 (grey), 3 (RGB) or 4 (with alpha). Raises: one of DECODE_ERRORS.
    """
    with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as file:
        if file.mode[0] in 'IF':
            raise ValueError(f'pixels of more than 8 bits (mode {file.mode})')
        image = ImageOps.exif_transpose(file).convert({1: 'L', 3: 'RGB', 4: 'RGBA'}[channels])
    if size and image.size != size[::-1]:
        image = ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels)


def dataset(
    sources: Mapping[str, Source],
    num_classes: int | None,
    class_names: tuple[str, ...] = (),
    vocab_size: int | None = None,
) -> Dataset:
    """Sources whose rows need no preparing: `inputs` (uint8 images, ids, numbers) and `targets`."""

    def prepare(train: Source) -> tuple[DataSpec, Transform]:
        row = train[np.array([0])]
        inputs, targets = (
            jax.ShapeDtypeStruct(row[role].shape[1:], row[role].dtype)
            for role in ('inputs', 'targets')
        )
        is_image = inputs.dtype == np.uint8 and len(inputs.shape) == 3
        mean, std = mean_and_std(train) if is_image else ((), ())
        spec = DataSpec(inputs, targets, num_classes, class_names, mean=mean, std=std)
        if vocab_size:
            spec = replace(spec, vocab_size=vocab_size, tokens=inputs.shape[0])
        return spec, rowwise(_unchanged)

    return Dataset(sources, prepare, labels=labels if num_classes else None)


def _unchanged(batch: Batch) -> Batch:
    return batch


def labels(source: Source) -> np.ndarray:
    """The class id of every row, without reading images where the source holds arrays.

    Rows that may have several labels all get the same id: they are not to be stratified.
    """
    if isinstance(source, Subset):
        return labels(source.source)[source.indices]
    rows = source.arrays if hasattr(source, 'arrays') else everything(source)
    targets = np.asarray(rows['targets'])
    return targets if targets.ndim == 1 else np.zeros(len(targets), targets.dtype)


def mean_and_std(train: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixels / 255; a constant channel gets deviation 1.

    Counts of integers: exact, and the same on every machine.
    """
    count = min(len(train), STATISTICS_ROWS)
    rows = np.arange(count) * len(train) // count
    histogram = np.zeros((train[rows[:1]]['inputs'].shape[-1], 256), np.int64)
    for some in np.array_split(rows, -(-count // 512)):
        channels = np.moveaxis(train[some]['inputs'], -1, 0)
        histogram += [np.bincount(pixels.ravel(), minlength=256) for pixels in channels]
    values, pixels = np.arange(256), histogram[0].sum()
    mean = histogram @ values / pixels
    std = np.sqrt(np.maximum(histogram @ values**2 / pixels - mean**2, 0))
    std[std == 0] = 255
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
