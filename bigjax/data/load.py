"""From the data section of a config to prepared splits, the same on every process."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bigjax import components
from bigjax.config import DataConfig
from bigjax.data.core import DataSpec, Source, Splits
from bigjax.data.splits import split
from bigjax.errors import DataError
from bigjax.sharding import hosts

PREPARE_SECONDS = 12 * 3600
"""A large text is tokenised within this time."""


def load(config: DataConfig) -> Splits:
    """Finds the data set, splits it, and prepares every split by what the training rows say.

    Process 0 goes first: the others find what it leaves in the cache, if they see the same disk.
    Raises: ConfigError, DataError, also where a process finds other data than process 0.
    """
    if jax.process_count() == 1:
        return _load(config)
    loaded = []

    def go_first() -> dict[str, Any]:
        loaded.append(_load(config))
        return _fingerprint(loaded[0])

    expected = hosts.first('data', go_first, PREPARE_SECONDS)
    splits = loaded[0] if loaded else _load(config)
    if (found := _fingerprint(splits)) != expected:
        raise DataError(f'data {config.name!r}: {found} here, {expected} on process 0')
    hosts.barrier('data loaded', PREPARE_SECONDS)
    return splits


def _load(config: DataConfig) -> Splits:
    module = components.find('data', config.name, 'config.data.name')
    dataset = module.load(components.build_config(module, config.options, 'config.data'))
    raw = split(dataset, config)
    spec, transform = dataset.prepare(raw['train'])
    sources = {name: transform(source) for name, source in raw.items()}
    for name, source in sources.items():
        _check_first_row(source, spec, f'data {config.name!r}, split {name!r}')
    return Splits(sources, spec, dataset.decode, dataset.tokenizer)


def _fingerprint(splits: Splits) -> dict[str, Any]:
    """Rows and a checksum of the first of them, by split; and whose tokens they are."""
    found: dict[str, Any] = {
        name: [
            len(source),
            zlib.crc32(b''.join(map(bytes, jax.tree.leaves(source[np.array([0])])))),
        ]
        for name, source in splits.sources.items()
    }
    return {**found, 'tokenizer': splits.tokenizer and splits.tokenizer.fingerprint}


def _check_first_row(source: Source, spec: DataSpec, where: str) -> None:
    row = source[np.array([0])]
    for key, expected in (('inputs', spec.inputs), ('targets', spec.targets)):
        if key not in row:
            raise DataError(f'{where}: a row has no {key!r}, only {", ".join(row)}')
        expected, got = _shapes(expected), _shapes(jax.tree.map(lambda array: array[0], row[key]))
        if got != expected:
            raise DataError(f'{where}: {key} are {got}; the spec says {expected}')


def _shapes(tree: object) -> Mapping | str:
    """A tree of arrays or shapes in words: `float32[30]`."""
    return jax.tree.map(lambda array: f'{array.dtype}{list(array.shape)}', tree)
