"""Documents tokenised once, into memory-mapped shards that later runs share.

A corpus is a folder of the cache, named by what it was made from:

    00000.tokens.npy  00000.pieces.npy   the tokens of a shard; of each of its pieces the numbers
                                         of tokens and bytes, and whether a document begins with it
    00000.json                           sizes and checksums: written last, so the shard is whole
    tokenizer/                           if it was learned from these documents
    manifest.json                        written when all is there

Whoever is killed leaves whole shards, which the next run keeps. Sizes are compared whenever a
corpus is opened, checksums of files that were touched since they were written.

Long documents are tokenised in pieces. A cut lies where the pre-tokenizers of GPT-2 and its kin
would cut in any case, so that the tokens are those of the whole, wherever text has lines or words.
"""

import hashlib
import io
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bigjax import seals
from bigjax.data import cache, tokenizers
from bigjax.data.records import Column, Part
from bigjax.data.tokenizers import Tokenizer, TokenizerConfig
from bigjax.errors import DataError, EnvironmentProblem

LAYOUT = 2
FEW = 20
"""Fewer documents than this are not dealt out whole: they are split in pieces, in their order."""

PIECE = 2**20
SHARD = 2**26
BATCH = 2**22
"""Characters: of a piece, of a shard, and of what is tokenised at a time."""

CUTS = (re.compile(r'(?<=\S\n)(?=\n?\S)'), re.compile(r'(?<=\S)(?= \S)'))
"""Behind a line end, or else before a space."""

LOG_EVERY = 10.0
log = logging.getLogger(__name__)

Pieces = Mapping[str, np.ndarray]
"""`start` and `stop` among all tokens, and `document`, an id: int64 [P] each."""


@dataclass(frozen=True)
class Corpus:
    """shards: their tokens, in order; starts: of each the place of its first token.

    pieces: by split. few: whether train has few documents.
    """

    folder: Path
    tokenizer: Tokenizer
    shards: Sequence[np.ndarray]
    starts: np.ndarray
    pieces: Mapping[str, Pieces]
    few: bool
    counts: Mapping[str, int]

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """The tokens at some places, int32."""
        if len(self.shards) == 1:
            return self.shards[0][places].astype(np.int32)
        shard = np.searchsorted(self.starts, places, side='right') - 1
        tokens = np.empty(places.shape, np.int32)
        for index in np.unique(shard):
            here = shard == index
            tokens[here] = self.shards[index][places[here] - self.starts[index]]
        return tokens


def tokenised(
    parts: Mapping[str, Sequence[Part]],
    column: Column,
    choice: TokenizerConfig,
    root: Path,
    settings: Mapping[str, Any],
) -> Corpus:
    """The corpus of some documents, made now or found in the cache folder `root`.

    settings: what else its documents depend on. A tokenizer is learned from all of them.
    Raises: DataError, ConfigError, EnvironmentProblem.
    """
    known = None if choice.is_learned else tokenizers.choose(choice, root, lambda: ())
    key = {
        'layout': LAYOUT,
        'parts': {split: [part.key for part in some] for split, some in parts.items()},
        'column': column,
        'tokenizer': known.fingerprint if known else [choice.name, choice.vocab_size],
        **settings,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    folder = root / f'text-{digest[:16]}'
    try:
        if not (folder / 'manifest.json').is_file():
            with cache.locked(folder.with_name(f'{folder.name}.lock')):
                if not (folder / 'manifest.json').is_file():
                    _build(folder, key, parts, column, choice)
        return _open(folder, known)
    except OSError as error:
        raise EnvironmentProblem(
            f'cache {folder}: {error.strerror or error}; free disk space, or set '
            f'config.data.cache_dir to a folder that can be written'
        ) from error


def _build(
    folder: Path,
    key: Mapping[str, Any],
    parts: Mapping[str, Sequence[Part]],
    column: Column,
    choice: TokenizerConfig,
) -> None:
    def documents(some: Iterable[Part]) -> Iterator[str]:
        texts = (record[0] for part in some for record in part.read((column,)))
        return (text for text in texts if text)

    folder.mkdir(parents=True, exist_ok=True)
    everything = list(chain.from_iterable(parts.values()))
    tokenizer = tokenizers.choose(choice, folder / 'tokenizer', lambda: documents(everything))
    first = list(islice(documents(parts['train']), FEW))
    if not first:
        raise DataError(f'{everything[0].where}: the text is empty')
    few = len(first) < FEW
    piece = _fine(sum(map(len, first))) if few else PIECE

    shards: list[dict] = []
    with _Progress(sum(part.size for part in everything)) as progress:
        for split, some in parts.items():
            cut = chain.from_iterable(_pieces(text, piece) for text in documents(some))
            for group in _grouped(cut, SHARD):
                shards.append(_shard(folder, len(shards), split, group, tokenizer, progress))
    counts = {
        name: sum(shard[name] for shard in shards) for name in ('documents', 'tokens', 'bytes')
    }
    manifest = {
        'made_from': key,
        'tokenizer': tokenizer.fingerprint,
        'vocab_size': tokenizer.vocab_size,
        'few': few,
        **counts,
        'shards': shards,
    }
    _write(folder / 'manifest.json', seals.seal(manifest))


Piece = tuple[str, bool, bool]
"""A text, whether a document begins with it, and whether one ends."""


def _fine(length: int) -> int:
    """The size of pieces for splits by the thousandth; shorter texts keep their lines instead."""
    return max(length // 1000, min(200, length // 20), 1)


def _cut(text: str, size: int) -> Iterator[str]:
    """Pieces of `size` characters or somewhat more."""
    start = 0
    while len(text) - start > size:
        near = start + size
        far = near + size
        found = (pattern.search(text, near, far) for pattern in CUTS)
        match = next((match for match in found if match), None)
        stop = match.start() if match else near if far < len(text) else len(text)
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]


def _pieces(text: str, size: int) -> Iterator[Piece]:
    cut = list(_cut(text, size))
    return ((piece, i == 0, i == len(cut) - 1) for i, piece in enumerate(cut))


def _grouped(pieces: Iterable[Piece], size: int) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    held = 0
    for piece in pieces:
        group.append(piece)
        held += len(piece[0])
        if held >= size:
            yield group
            group, held = [], 0
    if group:
        yield group


def framing(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What begins a document and what ends it.

    bos and eos; if they are one token, or there is but one, it begins documents; without either,
    [CLS] and [SEP]; without those nothing.
    """
    special = tokenizer.special
    ends = [special.get('bos', special.get('cls')), special.get('eos', special.get('sep'))]
    known = list(dict.fromkeys(token for token in ends if token is not None))
    return known[:1], known[1:]


def _shard(
    folder: Path,
    index: int,
    split: str,
    pieces: list[Piece],
    tokenizer: Tokenizer,
    progress: '_Progress',
) -> dict[str, Any]:
    """What is written of a shard, unless it is there already."""
    sidecar = folder / f'{index:05}.json'
    if sidecar.is_file():
        shard = cache.unsealed(sidecar)
        for name, expected in shard['files'].items():
            cache.check(folder / name, expected)
        progress.advance(shard['bytes'], 0)
        return shard
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    before, after = (np.array(ids, dtype) for ids in framing(tokenizer))
    tokens, table = [], []
    for batch in _grouped(pieces, BATCH):
        size = 0
        encoded = tokenizer.encode_batch([text for text, _, _ in batch])
        for ids, (text, begins, ends) in zip(encoded, batch, strict=True):
            around = (before[: begins * len(before)], ids, after[: ends * len(after)])
            framed = np.concatenate(around, dtype=dtype, casting='same_kind')
            tokens.append(framed)
            length = len(text.encode())
            table.append((len(framed), length, begins))
            size += length
        progress.advance(size, sum(map(len, encoded)))
    counts = np.array(table, np.int64)
    files = {
        f'{index:05}.tokens.npy': np.concatenate(tokens),
        f'{index:05}.pieces.npy': counts,
    }
    shard = {
        'split': split,
        'tokens': int(counts[:, 0].sum()),
        'bytes': int(counts[:, 1].sum()),
        'documents': int(counts[:, 2].sum()),
        'files': {name: _write_array(folder / name, array) for name, array in files.items()},
    }
    _write(sidecar, seals.seal(shard))
    return shard


def _write_array(path: Path, array: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    _write(path, buffer.getbuffer())
    return cache.stamp(path)


def _write(path: Path, content: bytes | memoryview) -> None:
    """Whole or not at all."""
    partial = path.with_name(f'{path.name}.partial')
    with partial.open('wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _open(folder: Path, known: Tokenizer | None) -> Corpus:
    manifest = cache.unsealed(folder / 'manifest.json')
    tokenizer = known or tokenizers.load(folder / 'tokenizer')
    if tokenizer.fingerprint != manifest['tokenizer']:
        raise DataError(f'{folder / "tokenizer"} is not that of the tokens; {cache.cure(folder)}')
    tokens, tables = [], []
    for shard in manifest['shards']:
        for name, expected in shard['files'].items():
            cache.check(folder / name, expected)
        tokens_file, pieces_file = (folder / name for name in shard['files'])
        tokens.append(np.load(tokens_file, mmap_mode='r', allow_pickle=False))
        tables.append(np.load(pieces_file, allow_pickle=False))
    table = np.concatenate(tables)
    stop = np.cumsum(table[:, 0])
    columns = {'start': stop - table[:, 0], 'stop': stop, 'document': np.cumsum(table[:, 2]) - 1}
    split_of_piece = np.repeat([s['split'] for s in manifest['shards']], list(map(len, tables)))
    pieces = {
        split: {name: column[split_of_piece == split] for name, column in columns.items()}
        for split in dict.fromkeys(split_of_piece.tolist())
    }
    starts = np.cumsum([0, *map(len, tokens[:-1])])
    counts = {name: manifest[name] for name in ('documents', 'tokens', 'bytes')}
    return Corpus(folder, tokenizer, tokens, starts, pieces, manifest['few'], counts)


class _Progress:
    """A bar with MB/s and tokens/s on a terminal; elsewhere a line in the log now and then."""

    def __init__(self, size: int):
        console = Console(stderr=True)
        text = TextColumn('{task.description}')
        self.bar = Progress(
            text, BarColumn(), TimeRemainingColumn(), console=console, transient=True,
            disable=not console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task('tokenising', total=size or None)
        self.bytes = self.tokens = 0
        self.start = self.logged = time.monotonic()

    def __enter__(self) -> '_Progress':
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, size: int, tokens: int) -> None:
        """tokens: 0 for what need not be tokenised again."""
        self.bytes += size if tokens else 0
        self.tokens += tokens
        now = time.monotonic()
        seconds = max(now - self.start, 1e-9)
        speed = f'{self.bytes / seconds / 1e6:.1f} MB/s, {self.tokens / seconds:,.0f} tokens/s'
        self.bar.update(self.task, advance=size, description=f'tokenising: {speed}')
        if self.bar.disable and now - self.logged > LOG_EVERY:
            self.logged = now
            log.info('tokenising: %.1f MB done, %s', self.bytes / 1e6, speed)
