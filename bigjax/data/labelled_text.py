"""Texts, or pairs of texts, and a class or a number for each: tokens and mask of one length.

The tokens are made once and memory-mapped by later runs. A tokenizer that is learned, is learned
from what the data set calls train.

Shapes: N rows, T = sequence_length.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigjax.data import cache, records, tokenizers
from bigjax.data.core import (
    ArraySource,
    Batch,
    Dataset,
    DataSpec,
    Source,
    Subset,
    Transform,
    rowwise,
)
from bigjax.data.records import Column, Part
from bigjax.data.tokenizers import Tokenizer, TokenizerConfig
from bigjax.errors import ConfigError, DataError, nearest
from bigjax.schema import PositiveInt


@dataclass(frozen=True)
class Config:
    """path: CSV, TSV, JSONL or Parquet files, 'tfds:NAME' or 'hf:PATH' (`bigjax.data.records`).

    text: columns, joined by a space, or with `pair` two texts told apart by `token_types`.
    header: of CSV and TSV; by default there is one if columns are given by name, not by number.
    class_names: in the order of sorted integer labels; of other labels, all there are, in order.
    regression: by default where labels are fractional numbers.
    """

    path: tuple[str, ...]
    text: tuple[Column, ...] = ('text',)
    label: Column = 'label'
    pair: bool = False
    header: bool | None = None
    class_names: tuple[str, ...] = ()
    regression: bool | None = None
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    sequence_length: PositiveInt = 128
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        if self.pair and len(self.text) != 2:
            raise ValueError(f'pair needs two columns in text, got {len(self.text)}')
        if self.regression and self.class_names:
            raise ValueError('class_names are of classes; leave them out, or regression')


def load(config: Config) -> Dataset:
    """Inputs {'tokens': int32 [T], 'mask': bool [T]}, with 'token_types' int32 [T] for pairs.

    Targets are class ids int32 or float32. Raises: ConfigError, DataError, EnvironmentProblem.
    """
    parts = records.find(config.path, header=config.header)
    root = cache.root(config.cache_dir)
    tokenizer = _tokenizer(config, root, parts['train'])
    raw = {split: _rows(config, root, tokenizer, some) for split, some in parts.items()}
    targets, class_names = _targets(config, {name: rows.pop('label') for name, rows in raw.items()})
    sources = {name: ArraySource({**rows, 'targets': targets[name]}) for name, rows in raw.items()}

    row = jax.ShapeDtypeStruct((config.sequence_length,), np.int32)
    mask = jax.ShapeDtypeStruct((config.sequence_length,), np.bool_)
    types = {'token_types': row} if config.pair else {}
    spec = DataSpec(
        inputs={'tokens': row, 'mask': mask, **types},
        targets=jax.ShapeDtypeStruct((), targets['train'].dtype),
        num_classes=len(class_names) or None,
        class_names=class_names,
        vocab_size=tokenizer.vocab_size,
        tokens=config.sequence_length,
        special=tokenizer.special,
    )

    def transform(batch: Batch) -> Batch:
        inputs = {name: batch[name].astype(leaf.dtype) for name, leaf in spec.inputs.items()}
        return {'inputs': inputs, 'targets': batch['targets']}

    def prepare(train: Source) -> tuple[DataSpec, Transform]:
        return spec, rowwise(transform)

    return Dataset(
        sources,
        prepare,
        decode=lambda row: tokenizer.decode(row['tokens'][row['mask']]),
        labels=_labels if class_names else None,
        tokenizer=tokenizer,
    )


def _labels(source: Source) -> np.ndarray:
    if isinstance(source, Subset):
        return _labels(source.source)[source.indices]
    assert isinstance(source, ArraySource)
    return source.arrays['targets']


def _columns(config: Config) -> records.Columns:
    return (*config.text, config.label)


def _texts(config: Config, parts: Sequence[Part]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The text or texts of each record, and its label."""
    for part in parts:
        for index, (*texts, label) in enumerate(part.read(_columns(config))):
            for text in texts:
                if not isinstance(text, str):
                    where = f'{part.where}, record {index}'
                    raise DataError(f'{where}: expected text in {config.text}, got {text!r}')
            if not any(text.strip() for text in texts):
                raise DataError(f'{part.where}, record {index}: the text is empty')
            yield (tuple(texts) if config.pair else (' '.join(texts),)), str(label)


def _tokenizer(config: Config, root: Path, train: Sequence[Part]) -> Tokenizer:
    chosen = config.tokenizer
    key = [chosen.name, chosen.vocab_size, config.text, [part.key for part in train]]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    folder = root / f'tokenizer-{digest[:16]}'
    texts = (text for record, _ in _texts(config, train) for text in record)
    if not chosen.is_learned:
        return tokenizers.choose(chosen, folder, lambda: ())
    with cache.locked(root / f'{folder.name}.lock'):
        return tokenizers.choose(chosen, folder, lambda: texts)


def _rows(config: Config, root: Path, tokenizer: Tokenizer, parts: Sequence[Part]) -> Batch:
    """tokens, mask, token_types [N, T], and the labels as they are written, [N]."""
    length = config.sequence_length
    ids = np.min_scalar_type(tokenizer.vocab_size - 1)
    padding = tokenizer.special.get('pad', 0)

    @functools.cache
    def records() -> tuple[list[tuple[str, ...]], np.ndarray]:
        pairs = list(_texts(config, parts))
        if not pairs:
            raise DataError(f'{parts[0].where}: no records')
        return [texts for texts, _ in pairs], np.array([label for _, label in pairs])

    def decode(indices: Sequence[int]) -> Batch:
        texts, labels = records()
        rows = {
            'tokens': np.full((len(indices), length), padding, ids),
            'mask': np.zeros((len(indices), length), bool),
            'token_types': np.zeros((len(indices), length), np.uint8),
            'label': labels[indices],
        }
        encoded = tokenizer.encode_pairs([texts[index] for index in indices], length)
        for row, (tokens, types) in enumerate(encoded):
            rows['tokens'][row, : len(tokens)] = tokens
            rows['token_types'][row, : len(tokens)] = types
            rows['mask'][row, : len(tokens)] = True
        return rows

    key: dict[str, Any] = {
        'parts': [part.key for part in parts],
        'columns': _columns(config),
        'pair': config.pair,
        'header': config.header,
        'tokenizer': tokenizer.fingerprint,
        'sequence_length': length,
    }
    return cache.rows(root, 'labelled-text', key, decode, lambda: range(len(records()[0])))


def _targets(
    config: Config, labels: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Class ids int32 of all splits and the names of the classes in train, or float32 and none."""
    known = np.unique(labels['train'])
    if config.regression is not False:
        try:
            numbers = {split: column.astype(np.float64) for split, column in labels.items()}
            if config.regression or any((values % 1).any() for values in numbers.values()):
                for split, values in numbers.items():
                    if not (np.abs(values) <= np.finfo(np.float32).max).all():
                        raise DataError(f'config.data.label: {split} holds nan or inf')
                return {s: values.astype(np.float32) for s, values in numbers.items()}, ()
        except ValueError as error:
            if config.regression:
                raise DataError(f'config.data.label: expected numbers: {error}') from None
    integers = all(label.removeprefix('-').isdigit() for label in known.tolist())
    order = sorted(known.tolist(), key=int) if integers else known.tolist()
    if config.class_names and not integers:
        if unknown := sorted(set(order) - set(config.class_names)):
            hint = nearest(unknown[0], config.class_names)
            raise ConfigError(f'config.data.class_names: no class {unknown[0]!r}; {hint}')
        order = list(config.class_names)
    names = config.class_names or tuple(order)
    if len(order) < 2 or len(names) != len(order):
        found = f'{len(order)} in column {config.label}: {", ".join(order[:10])}'
        raise DataError(f'expected {max(2, len(names))} classes, got {found}')
    ids = {label: id for id, label in enumerate(order)}
    targets = {}
    for split, column in labels.items():
        distinct, inverse = np.unique(column, return_inverse=True)
        if unknown := sorted(set(distinct.tolist()) - ids.keys()):
            raise DataError(
                f'split {split!r}: label {unknown[0]!r} is not in train; {nearest(unknown[0], ids)}'
            )
        table = np.array([ids[label] for label in distinct.tolist()], np.int32)
        targets[split] = table[inverse]
    return targets, names
