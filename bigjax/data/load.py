"""From the data section of a config to prepared splits."""

from collections.abc import Mapping

import jax
import numpy as np

from bigjax import components
from bigjax.config import DataConfig
from bigjax.data.core import DataSpec, Source, Splits
from bigjax.data.splits import split
from bigjax.errors import DataError


def load(config: DataConfig) -> Splits:
    """Finds the data set, splits it, and prepares every split by what the training rows say.

    Raises: ConfigError, DataError.
    """
    module = components.find('data', config.name, 'config.data.name')
    dataset = module.load(components.build_config(module, config.options, 'config.data'))
    raw = split(dataset, config)
    spec, transform = dataset.prepare(raw['train'])
    sources = {name: transform(source) for name, source in raw.items()}
    for name, source in sources.items():
        _check_first_row(source, spec, f'data {config.name!r}, split {name!r}')
    return Splits(sources, spec, dataset.decode, dataset.tokenizer)


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
