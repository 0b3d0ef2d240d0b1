"""The contract of data: random access to raw rows, and batches that are pure functions of the step.

A data set named `digits` is the module `bigjax.data.digits`; any other name is a module of the
user's own. Such a module defines `Config`, a frozen dataclass, and `load(config) -> Dataset`.

A batch is a dict of arrays with a leading batch axis: `inputs` (an array, or a dict of arrays),
`targets`, and `weights`, float32, 0 for padding. Images are uint8 `[B, H, W, C]` or float32.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from bigjax.data.tokenizers import Tokenizer

Batch = dict[str, Any]


class Source(Protocol):
    """Rows by index, the same at each call, from any thread."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray) -> Batch:
        """The rows `indices` (an int array [B]) stacked along a leading axis."""
        ...


Transform = Callable[[Source], Source]
"""From the raw rows of a split to its prepared rows; `rowwise` makes one where each is of one."""


@dataclass(frozen=True)
class DataSpec:
    """What a model and a task need to know of the rows that they will be fed.

    inputs, targets: a `jax.ShapeDtypeStruct` (or a dict of them) of one row, without a batch axis.
    num_classes: for integer or one-hot targets; class_names in the order of the ids.
    vocab_size, tokens: for token sequences: distinct ids, and tokens a row.
    special: ids of the tokenizer's bos, eos, pad, unk, cls, sep, mask, as far as there are such.
    token_bytes: [vocab_size], the bytes that each token stands for, where that is exact.
    mean, std: of uint8 images, per channel of pixels / 255; the jitted step standardises with them.
    """

    inputs: Any
    targets: Any
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    vocab_size: int | None = None
    tokens: int | None = None
    special: Mapping[str, int] = field(default_factory=dict)
    token_bytes: np.ndarray | None = field(default=None, compare=False)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Raw rows by split name, and how to make model inputs of them.

    prepare: given the raw rows of the training split, and of no other, the spec of prepared rows
        and the transform from raw to prepared (statistics for standardising, categories, ...).
    decode: a prepared input as text for sample predictions, where it has a readable form.
    labels: the targets of raw rows as an int array, for stratified splits; None if there are no
        classes.
    tokenizer: what made the tokens of rows that are text.
    ordered: fractions and folds are cut from the rows as they lie, train first, not drawn.
    fractions: of train, for val and test, where the data set has none and the config says nothing.
    """

    sources: Mapping[str, Source]
    prepare: Callable[[Source], tuple[DataSpec, Transform]]
    decode: Callable[[Any], str] | None = None
    labels: Callable[[Source], np.ndarray] | None = None
    tokenizer: Tokenizer | None = None
    ordered: bool = False
    fractions: Mapping[str, float] = field(default_factory=lambda: {'val': 0.1, 'test': 0.1})


@dataclass(frozen=True)
class ArraySource:
    """Rows of arrays in memory, or memory-mapped: every leaf has the same leading axis."""

    arrays: Batch

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.arrays)[0])

    def __getitem__(self, indices: np.ndarray) -> Batch:
        return jax.tree.map(lambda array: array[indices], self.arrays)


@dataclass(frozen=True)
class Subset:
    """Some rows of a source, in the order of `indices`."""

    source: Source
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: np.ndarray) -> Batch:
        return self.source[self.indices[indices]]


@dataclass(frozen=True)
class Prepared:
    """A source whose rows are transformed as they are read."""

    source: Source
    transform: Callable[[Batch], Batch]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, indices: np.ndarray) -> Batch:
        return self.transform(self.source[indices])


@dataclass(frozen=True)
class Splits:
    """What training reads: prepared sources `train`, `val`, `test` (those there are) and their
    spec."""

    sources: Mapping[str, Source]
    spec: DataSpec
    decode: Callable[[Any], str] | None = None
    tokenizer: Tokenizer | None = None


def everything(source: Source) -> Batch:
    """All rows of a source that fits in memory."""
    return source[np.arange(len(source))]


def rowwise(transform: Callable[[Batch], Batch]) -> Transform:
    """Row by row: rows in memory are transformed once, others each time that they are read."""

    def prepared(source: Source) -> Source:
        lazy = Prepared(source, transform)
        return ArraySource(everything(lazy)) if _in_memory(source) else lazy

    return prepared


def _in_memory(source: Source) -> bool:
    if isinstance(source, Subset):
        return _in_memory(source.source)
    return isinstance(source, ArraySource) and not any(
        isinstance(array, np.memmap) for array in jax.tree.leaves(source.arrays)
    )
