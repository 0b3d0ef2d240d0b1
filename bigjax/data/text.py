"""Text as bytes, for language models: windows of a stream of documents.

Documents are split, not windows, so no part of a document is in two splits. Each begins with a
zero byte. Window i predicts the targets at positions `[i T + 1, (i + 1) T + 1)` of its stream, each
from those before it in the window: every byte is a target exactly once.

Shapes: B windows of a batch, T = sequence_length.
"""

import glob
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from bigjax.data.checks import require_utf8
from bigjax.data.core import Batch, Dataset, DataSpec, Source, Transform
from bigjax.errors import DataError
from bigjax.schema import PositiveInt

STDLIB = 'stdlib'
NOT_LIBRARY = {
    'site-packages', 'dist-packages', 'test', 'tests', 'idlelib', 'lib2to3', 'turtledemo',
    '__pycache__',
}  # fmt: skip
CUTS = (0.9, 0.95)
"""Where val begins, and where test does."""


@dataclass(frozen=True)
class Config:
    """path: files, folders or globs of UTF-8 text, or 'stdlib', the source of Python's own library.

    pattern: which files of a folder; `**` is any depth.
    """

    path: tuple[str, ...] = (STDLIB,)
    pattern: str = '**/*.txt'
    sequence_length: PositiveInt = 256


def load(config: Config) -> Dataset:
    """Inputs and targets int32 [T], weights float32 [T]. Raises: DataError."""
    texts = [text for path in config.path for text in read_documents(path, config.pattern)]
    if not any(texts):
        raise DataError(f'{", ".join(config.path)}: the text is empty')
    sources = {
        name: Windows.of(part, config.sequence_length)
        for name, part in split_documents(texts).items()
    }
    spec = DataSpec(
        inputs=jax.ShapeDtypeStruct((config.sequence_length,), np.int32),
        targets=jax.ShapeDtypeStruct((config.sequence_length,), np.int32),
        vocab_size=256,
        tokens=config.sequence_length,
    )

    def prepare(train: Source) -> tuple[DataSpec, Transform]:
        return spec, lambda rows: rows

    return Dataset(
        sources, prepare, decode=lambda ids: bytes(ids.tolist()).decode(errors='replace')
    )


@dataclass(frozen=True)
class Windows:
    """Windows of a stream of tokens, in memory or memory-mapped.

    inputs, targets: views [num_windows, T] of the stream, one token apart.
    last: how many targets of the last window are real; the others are padding of weight 0.
    """

    inputs: np.ndarray
    targets: np.ndarray
    last: int

    @classmethod
    def of(cls, texts: list[bytes], length: int) -> 'Windows':
        """The windows of texts that each follow a zero byte."""
        stream = b''.join(b'\0' + text for text in texts)
        num_windows = -(-(len(stream) - 1) // length)
        tokens = np.zeros(num_windows * length + 1, np.uint8)
        tokens[: len(stream)] = np.frombuffer(stream, np.uint8)
        inputs, targets = (part.reshape(-1, length) for part in (tokens[:-1], tokens[1:]))
        return cls(inputs, targets, len(stream) - 1 - (num_windows - 1) * length)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, indices: np.ndarray) -> Batch:
        targets = self.targets[indices].astype(np.int32)
        weights = np.ones(targets.shape, np.float32)
        weights[indices == len(self) - 1, self.last :] = 0
        inputs = self.inputs[indices].astype(np.int32)
        return {'inputs': inputs, 'targets': targets, 'weights': weights}


def split_documents(documents: list[bytes]) -> dict[str, list[bytes]]:
    """Texts of train, val and test, in proportion to their bytes.

    Documents are dealt in the order of a hash of their content: the same on every machine, and
    copies of a document stay together. Where they are too few for all splits to get one, each is
    cut in three.
    """
    ordered = sorted(documents, key=lambda text: hashlib.blake2b(text).digest())
    sizes = np.array([len(text) for text in ordered])
    middles = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    val, test = np.searchsorted(middles, CUTS)
    if 0 < val < test < len(ordered):
        return {'train': ordered[:val], 'val': ordered[val:test], 'test': ordered[test:]}
    parts: dict[str, list[bytes]] = {'train': [], 'val': [], 'test': []}
    for text in documents:
        val, test = (round(cut * len(text)) for cut in CUTS)
        parts['train'].append(text[:val])
        parts['val'].append(text[val:test])
        parts['test'].append(text[test:])
    return parts


def read_documents(path: str, pattern: str) -> list[bytes]:
    """The files of one path, in alphabetic order. Raises: DataError."""
    if path == STDLIB:
        files = _stdlib_files()
    else:
        if os.path.isdir(path):
            path = os.path.join(glob.escape(path), pattern)
        files = [file for file in glob.glob(path, recursive=True) if os.path.isfile(file)]
    if not files:
        raise DataError(f'config.data.path: no file matches {path!r}')
    texts = [Path(file).read_bytes() for file in sorted(files)]
    for file, text in zip(sorted(files), texts, strict=True):
        require_utf8(text, file)
    return texts


def _stdlib_files() -> list[str]:
    """Modules of the library itself: no installed packages, no tests, nothing of one machine."""
    files = []
    for folder, subfolders, names in os.walk(os.path.dirname(os.__file__)):
        subfolders[:] = [name for name in subfolders if name not in NOT_LIBRARY]
        files += [
            os.path.join(folder, name)
            for name in names
            if name.endswith('.py') and not name.startswith('_sysconfigdata')
        ]
    return files
