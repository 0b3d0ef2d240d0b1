"""Which rows train, which choose (val) and which judge (test).

`data.splits` gives for each of them a name with an optional slice, of rows or percent (`'test'`,
`'train[:80%]'`, `'train[-500:]'`), or a fraction of the pool: all that the data set calls train.
Fractions and folds are drawn with `split_seed`, are disjoint, and give every class its share within
a row or so; of rows whose order matters they are blocks, in the order train, val, test. `train`
left out takes what the fractions leave of the pool.

Without `data.splits` a data set keeps its own; what it lacks is cut from train by the data set's
`fractions`, as a rule 80/10/10; a data set with val alone gets no test. With folds, fold i of k is
test, the rest is the pool, and there is a val only if `data.splits` asks for one.
"""

import re
from collections.abc import Mapping

import numpy as np

from bigjax.config import DataConfig
from bigjax.data.core import Dataset, Source, Subset
from bigjax.errors import ConfigError, DataError, nearest

NAMES = ('train', 'val', 'test')
WHERE = 'config.data.splits'

Rows = tuple[str, np.ndarray]
"""Some rows of the data set's own split of that name."""


def split(dataset: Dataset, config: DataConfig) -> dict[str, Source]:
    """The raw sources of train, val and test, as far as there are such.

    Raises: ConfigError for a name, slice or fraction that does not fit the data, or for rows that
    train shares with another split; DataError for a split without rows.
    """
    sources = dataset.sources
    if 'train' not in sources:
        raise DataError(f"data {config.name!r} has no split 'train'; it has {', '.join(sources)}")
    for name, source in sources.items():
        if not len(source):
            raise DataError(f'data {config.name!r} has no records in its split {name!r}')
    wanted = config.splits or _default_splits(dataset, config.folds is not None)
    if unknown := sorted(set(wanted) - set(NAMES)):
        raise ConfigError(f'unknown key {WHERE}.{unknown[0]}: {nearest(unknown[0], NAMES)}')

    if config.folds and 'test' in wanted:
        raise ConfigError(f'{WHERE}.test and config.data.folds both choose the test split')

    fractions = {name: value for name, value in wanted.items() if not isinstance(value, str)}
    named = {name: value for name, value in wanted.items() if isinstance(value, str)}
    rows = {name: _parse(value, sources, f'{WHERE}.{name}') for name, value in named.items()}
    if fractions or config.folds or 'train' not in named:
        for name, (base, _) in rows.items():
            if base == 'train':
                raise ConfigError(
                    f'{WHERE}.{name}={named[name]!r}: folds, fractions, or train left out divide '
                    f'all of train; give slices for every split, or for none'
                )
        rows = {**_draw(dataset, config, fractions), **rows}
    _refuse_overlap(rows)
    for name, (_, part) in rows.items():
        if not len(part):
            raise DataError(
                f'split {name!r} of data {config.name!r} gets no rows: train has '
                f'{len(sources["train"])} records; give {WHERE}.{name} a larger part'
            )
    return {name: _subset(sources[rows[name][0]], rows[name][1]) for name in NAMES if name in rows}


def _default_splits(dataset: Dataset, folded: bool) -> Mapping[str, str | float]:
    if folded:
        return {}
    sources = dataset.sources
    val = 'validation' if 'validation' in sources else 'val'  # the name that TFDS uses
    own = {name: base for name, base in (('val', val), ('test', 'test')) if base in sources}
    return own if 'val' in own else {**dataset.fractions, **own}


def _draw(dataset: Dataset, config: DataConfig, fractions: Mapping[str, float]) -> dict[str, Rows]:
    """The pool's rows, drawn into fold and fractions; train is what these leave, if it has none."""
    for name, fraction in fractions.items():
        if not 0 < fraction <= 1:
            raise ConfigError(f'bad value for {WHERE}.{name}: a fraction in (0, 1], got {fraction}')
    if sum(fractions.values()) > 1 + 1e-9:
        raise ConfigError(f'{WHERE}: fractions sum to {sum(fractions.values()):g}, more than 1')

    pool = dataset.sources['train']
    labels = dataset.labels(pool) if dataset.labels else None
    rest, take = stratified_order(len(pool), labels, config.split_seed), take_evenly
    if dataset.ordered:
        rest, take = np.arange(len(pool)), take_last
    parts = {}
    if config.folds is not None and config.fold is not None:
        if config.folds > len(rest):
            raise ConfigError(f'config.data.folds={config.folds} exceeds the {len(rest)} records')
        places = np.arange(len(rest))
        fold = places * config.folds // len(rest) if dataset.ordered else places % config.folds
        in_fold = fold == config.fold
        parts['test'], rest = rest[in_fold], rest[~in_fold]
    drawn = [name for name in ('test', 'val', 'train') if name in fractions]
    edges = np.cumsum([0, *(fractions[name] for name in drawn)]) * len(rest)
    for name, count in zip(drawn, np.diff(np.round(edges).astype(int)), strict=True):
        parts[name], rest = take(rest, count)
    return {name: ('train', np.sort(part)) for name, part in ({'train': rest} | parts).items()}


def stratified_order(num_rows: int, labels: np.ndarray | None, seed: int) -> np.ndarray:
    """A random order of the rows, class after class: evenly spaced picks of it are stratified."""
    order = np.random.default_rng(seed).permutation(num_rows)
    return order if labels is None else order[np.argsort(labels[order], kind='stable')]


def take_evenly(order: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` evenly spaced entries and the rest; any run of entries gives its share, +-1."""
    taken = np.diff(np.arange(len(order) + 1) * count // max(len(order), 1)) == 1
    return order[taken], order[~taken]


def take_last(order: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The last `count` entries, and those before them."""
    edge = len(order) - count
    return order[edge:], order[:edge]


def _parse(text: str, sources: Mapping[str, Source], where: str) -> Rows:
    """`name`, `name[10:20]`, `name[:80%]`, `name[-5%:]`: the rows that this means."""
    match = re.fullmatch(r'([^\[\]]+)(?:\[([^:\[\]]*):([^:\[\]]*)\])?', text.strip())
    if not match:
        raise ConfigError(f"bad value for {where}: expected 'name' or 'name[a:b]', got {text!r}")
    base = match[1]
    if base not in sources:
        raise ConfigError(f'bad value for {where}: no split {base!r}; {nearest(base, sources)}')
    size = len(sources[base])
    start = _boundary(match[2], 0, size, where)
    stop = _boundary(match[3], size, size, where)
    return base, np.arange(start, stop)


def _boundary(text: str | None, default: int, size: int, where: str) -> int:
    if not text:
        return default
    match = re.fullmatch(r'(-?)(?:(\d+)|(\d+(?:\.\d+)?)%)', text.strip())
    if not match:
        raise ConfigError(f'bad value for {where}: expected rows or a percentage, got {text!r}')
    distance = int(match[2]) if match[2] else round(float(match[3]) / 100 * size)
    if distance > size:
        raise ConfigError(f'bad value for {where}: {text} is beyond the {size} records there are')
    return size - distance if match[1] else distance


def _refuse_overlap(rows: Mapping[str, Rows]) -> None:
    train_base, train_rows = rows['train']
    for name in ('val', 'test'):
        if name not in rows or rows[name][0] != train_base:
            continue
        shared = np.intersect1d(train_rows, rows[name][1], assume_unique=True)
        if len(shared):
            raise ConfigError(
                f'{WHERE}: train and {name} share {len(shared)} rows of {train_base!r} '
                f'(the first is {shared[0]}); make the slices disjoint'
            )


def _subset(source: Source, rows: np.ndarray) -> Source:
    return source if len(rows) == len(source) else Subset(source, rows)
