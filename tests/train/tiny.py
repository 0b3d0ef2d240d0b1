"""Runs small enough to compile in a second."""

from typing import Any

import jax
import numpy as np

from bigjax import config as configs
from bigjax.config import Config
from bigjax.data.core import ArraySource, DataSpec, Splits

BASE: dict[str, Any] = {
    'model': {'name': 'mlp', 'widths': (16, 16)},
    'task': {'name': 'classification'},
    'data': {'name': 'wine'},
    'train': {'steps': 6, 'batch_size': 16, 'log_every': 1},
    'eval': {'every': 3},
    'checkpoint': {'every': 3},
    'optimizer': {'name': 'adamw', 'learning_rate': 1e-2},
}


def tiny_config(**values: Any) -> Config:
    """BASE with dotted fields replaced: `tiny_config(**{'train.steps': 3})`."""
    return configs.with_values(configs.resolve(BASE), **values)


def blobs(rows: int = 48, features: int = 8, classes: int = 4) -> Splits:
    """Rows around one centre a class."""
    rng = np.random.default_rng(0)
    targets = rng.integers(classes, size=rows).astype(np.int32)
    centres = rng.normal(size=(classes, features))
    inputs = (centres[targets] + rng.normal(size=(rows, features))).astype(np.float32)
    return splits_of(inputs, targets, num_classes=classes)


def images(rows: int = 48, side: int = 8, classes: int = 4) -> Splits:
    """Noise."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(rows, side, side, 1)).astype(np.float32)
    return splits_of(inputs, rng.integers(classes, size=rows).astype(np.int32), num_classes=classes)


def sentences(rows: int = 48, length: int = 12, vocab: int = 16) -> Splits:
    """Random tokens, to be predicted one ahead."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, vocab, size=(rows, length + 1)).astype(np.int32)
    return splits_of(tokens[:, :-1], tokens[:, 1:], vocab_size=vocab, tokens=length)


def documents(rows: int = 48, length: int = 16, vocab: int = 16) -> Splits:
    """Random tokens, to be told again; a few documents and padding in each row."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, vocab, size=(rows, length)).astype(np.int32)
    segments = np.sort(rng.integers(0, 4, size=(rows, length)).astype(np.int32))[:, ::-1]
    inputs = {'tokens': tokens, 'segments': segments}
    return splits_of(inputs, tokens, vocab_size=vocab, tokens=length)


def splits_of(inputs: Any, targets: np.ndarray, **spec: Any) -> Splits:
    """The same rows as train, val and test."""
    source = ArraySource({'inputs': inputs, 'targets': targets})
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (inputs, targets))
    return Splits({'train': source, 'val': source, 'test': source}, DataSpec(*rows, **spec))
