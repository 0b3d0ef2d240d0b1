"""Several data sets as one: their rows in the proportions of given weights.

An epoch is as long as it takes for every row of every part to occur at least once; meanwhile rows
of parts that weigh more than their size occur again. Row numbers alone say which row of which part
it is, and the order of an epoch is drawn as of any data set. Val and test are those of the parts,
one behind the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from bigjax.config import DataConfig
from bigjax.data.core import Batch, Dataset, DataSpec, Source, Splits, Subset, Transform
from bigjax.data.load import load as load_part
from bigjax.errors import ConfigError, nearest
from bigjax.schema import Positive


@dataclass(frozen=True)
class Config:
    """parts: name -> a data section. weights: name -> share of the training rows; by default the
    numbers of their rows."""

    parts: Mapping[str, DataConfig]
    weights: Mapping[str, Positive] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError('parts: expected at least one data section')
        if self.weights and self.weights.keys() != self.parts.keys():
            odd = sorted(self.weights.keys() ^ self.parts.keys())[0]
            raise ValueError(f'weights: expected one for each part; {nearest(odd, self.parts)}')
        for name, part in self.parts.items():
            if part.augment:
                raise ValueError(f'parts.{name}.augment: set config.data.augment instead')


def load(config: Config) -> Dataset:
    """Rows as the parts prepare them. Raises: ConfigError for parts that do not go together."""
    parts = {name: load_part(part) for name, part in config.parts.items()}
    first, *_ = parts.values()
    for name, part in parts.items():
        _require_alike(next(iter(parts)), first, name, part)
    trains = {name: part.sources['train'] for name, part in parts.items()}
    counts = epoch({name: len(source) for name, source in trains.items()}, config.weights)
    repeated = [
        Subset(source, np.arange(counts[name]) % len(source)) for name, source in trains.items()
    ]
    sources: dict[str, Source] = {'train': Concatenated(tuple(repeated))}
    for split in ('val', 'test'):
        some = [part.sources[split] for part in parts.values() if split in part.sources]
        if some:
            sources[split] = Concatenated(tuple(some))
    if 'val' not in sources:  # it would be drawn from train, in which rows occur twice
        raise ConfigError('config.data.parts: no part has a split val; set splits of a part')

    def prepare(train: Source) -> tuple[DataSpec, Transform]:
        return first.spec, lambda source: source

    return Dataset(sources, prepare, decode=first.decode, tokenizer=first.tokenizer)


def epoch(sizes: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """How often an epoch takes a row of each part: by weight, but each row at least once."""
    weights = weights or sizes
    longest = max(sizes[name] / weights[name] for name in sizes)
    return {name: max(size, round(longest * weights[name])) for name, size in sizes.items()}


@dataclass(frozen=True)
class Concatenated:
    """The rows of several sources, one source behind the other."""

    sources: tuple[Source, ...]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, indices: np.ndarray) -> Batch:
        starts = np.cumsum([0, *map(len, self.sources)])
        which = np.searchsorted(starts, indices, side='right') - 1
        order = np.argsort(which, kind='stable')
        found = [
            self.sources[part][indices[which == part] - starts[part]] for part in np.unique(which)
        ]
        back = np.argsort(order)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[back], *found)


def _require_alike(name: str, one: Splits, other_name: str, other: Splits) -> None:
    def kind(splits: Splits) -> dict[str, Any]:
        row = splits.sources['train'][np.array([0])]
        tokenizer = splits.tokenizer and splits.tokenizer.fingerprint
        return {**vars(splits.spec), 'tokenizer': tokenizer, 'rows': sorted(row)}

    for what, expected in kind(one).items():
        got = kind(other)[what]
        if what != 'token_bytes' and got != expected:
            raise ConfigError(
                f'config.data.parts.{other_name}: {what} is {got}; part {name} has {expected}'
            )
