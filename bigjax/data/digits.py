"""Handwritten digits: 1,797 images of 8x8 pixels in 17 greys; bundled with scikit-learn."""

from dataclasses import dataclass

import jax
import numpy as np
from sklearn.datasets import load_digits

from bigjax.data.core import ArraySource, Dataset, DataSpec, Source, Transform, everything


@dataclass(frozen=True)
class Config:
    """No options."""


def load(config: Config) -> Dataset:
    """Inputs float32 [8, 8, 1] in [0, 1]; targets are class ids."""
    data = load_digits()
    inputs = (data.images / 16).astype(np.float32)[..., None]
    rows = {'inputs': inputs, 'targets': data.target.astype(np.int32)}
    return Dataset(
        {'train': ArraySource(rows)}, _prepare, labels=lambda source: everything(source)['targets']
    )


def _prepare(train: Source) -> tuple[DataSpec, Transform]:
    spec = DataSpec(
        inputs=jax.ShapeDtypeStruct((8, 8, 1), np.float32),
        targets=jax.ShapeDtypeStruct((), np.int32),
        num_classes=10,
        class_names=tuple('0123456789'),
    )
    return spec, lambda rows: rows
