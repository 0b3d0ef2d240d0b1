"""Text for language models: documents, tokenised once, in rows of one length.

Documents are split, not rows, so no part of a document is in two splits. Fewer than 20 documents
are cut at line ends into about a thousand pieces, and these are split in their order:
`'train[:90%]'` is the first nine tenths of the text.

Each document begins with the tokenizer's bos, or its eos if that is the only one, and ends with eos
if that is another token (bytes: 0 begins it; characters: nothing stands between documents). A
tokenizer that is learned, is learned from all the text there is: it is chosen before the splits.
"""

from dataclasses import dataclass, field
from typing import Literal

import jax
import numpy as np

from bigjax import schema
from bigjax.config import DataConfig
from bigjax.data import cache, corpus, packing, records
from bigjax.data.core import ArraySource, Dataset, DataSpec, Source, Transform, everything
from bigjax.data.records import Column, Document
from bigjax.data.tokenizers import TokenizerConfig
from bigjax.errors import ConfigError
from bigjax.schema import PositiveInt


@dataclass(frozen=True)
class Config:
    """path: files, folders or globs, 'tfds:NAME', 'hf:PATH', or 'stdlib' (`bigjax.data.records`).

    pattern: which files of a folder; `**` is any depth.
    column: of text, in files that have columns. document: what is one, in plain text.
    packing: windows of the stream of documents; the same with every document isolated from the
        others by `segments`; or isolated documents packed into rows whole, as far as they fit.
    stride: of the windows of val and test, so that a target has at least `sequence_length - stride`
        tokens before it; by default sequence_length.
    """

    path: tuple[str, ...] = (records.STDLIB,)
    pattern: str = '**/*.txt'
    column: Column = 'text'
    document: Document = 'file'
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    sequence_length: PositiveInt = 256
    packing: Literal['stream', 'isolated', 'best_fit'] = 'stream'
    stride: PositiveInt | None = None
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        if self.stride and self.stride > self.sequence_length:
            raise ValueError(
                f'stride={self.stride} leaves tokens out; expected at most '
                f'sequence_length={self.sequence_length}'
            )
        if self.stride and self.packing == 'best_fit':
            raise ValueError('stride needs windows; set packing to stream or isolated')


def load(config: Config) -> Dataset:
    """Inputs and targets int32 [T], weights float32 [T]; inputs are a dict if isolated.

    Raises: ConfigError, DataError, EnvironmentProblem.
    """
    tokens = _corpus(config)
    tokenizer, few = tokens.tokenizer, tokens.few
    length, isolated = config.sequence_length, config.packing != 'stream'
    separated = bool(corpus.framing(tokenizer)[0])
    row = jax.ShapeDtypeStruct((length,), np.int32)
    spec = DataSpec(
        inputs=dict.fromkeys(('tokens', 'segments', 'positions'), row) if isolated else row,
        targets=row,
        vocab_size=tokenizer.vocab_size,
        tokens=length,
        special=tokenizer.special,
        token_bytes=tokenizer.token_bytes(),
    )

    def prepare(train: Source) -> tuple[DataSpec, Transform]:
        def transform(source: Source) -> Source:
            documents = packing.Documents.of(everything(source))
            if config.packing == 'best_fit':
                return packing.packed(tokens, documents, length, separated)
            stride = (source is not train and config.stride) or length
            return packing.windows(tokens, documents, length, stride, isolated, separated)

        return spec, transform

    return Dataset(
        sources={
            split: ArraySource(dict(pieces) if few else _whole(pieces))
            for split, pieces in tokens.pieces.items()
        },
        prepare=prepare,
        decode=lambda row: tokenizer.decode(row['tokens'] if isolated else row),
        tokenizer=tokenizer,
        ordered=few,
        fractions={'val': 0.05, 'test': 0.05},
    )


def summary(data: DataConfig) -> str:
    """Tokenises the text of a data section, and says what there is of it and where it lies.

    Raises: ConfigError for another data set; ConfigError, DataError, EnvironmentProblem of `load`.
    """
    if data.name != 'text':
        raise ConfigError(f"config.data.name: only 'text' is tokenised beforehand, not {data.name}")
    tokens = _corpus(schema.build(Config, data.options, 'config.data'))
    counts = ', '.join(f'{count:,} {what}' for what, count in tokens.counts.items())
    return f'{counts} in {tokens.folder}'


def _corpus(config: Config) -> corpus.Corpus:
    return corpus.tokenised(
        records.find(config.path, config.pattern, config.document),
        config.column,
        config.tokenizer,
        cache.root(config.cache_dir),
        {'document': config.document},
    )


def _whole(pieces: corpus.Pieces) -> dict[str, np.ndarray]:
    """Rows that are documents."""
    documents = packing.Documents.of(pieces)
    _, first = np.unique(pieces['document'], return_index=True)
    return {
        'start': documents.start,
        'stop': documents.stop,
        'document': pieces['document'][first],
    }
