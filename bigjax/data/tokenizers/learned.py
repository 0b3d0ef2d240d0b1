"""Tokenizers that are learned from a text, and the choice that a config makes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bigjax.data.tokenizers.files import END_OF_TEXT, load
from bigjax.data.tokenizers.kinds import Bytes, Library, Tokenizer
from bigjax.errors import ConfigError
from bigjax.schema import PositiveInt

TRAINING_BYTES = 2**30
"""BPE is trained on the first so many bytes of a corpus: more change little, and cost memory."""


@dataclass(frozen=True)
class TokenizerConfig:
    """name: 'bytes', 'characters', 'bpe' (the last two learned from the text), or a path.

    vocab_size: of bpe, with its 256 bytes and one end of text.
    """

    name: str = 'bytes'
    vocab_size: PositiveInt = 4096

    @property
    def is_learned(self) -> bool:
        return self.name in ('characters', 'bpe')


def characters(texts: Iterable[str]) -> Library:
    """The characters of the texts in sorted order, and no special token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(set().union(*texts))
    vocabulary = {character: id for id, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated')
    tokenizer.decoder = decoders.Fuse()
    return Library(tokenizer, {})


def train_bpe(texts: Iterable[str], vocab_size: int) -> Library:
    """Byte-level BPE as in GPT-2: any text has tokens. Raises: ConfigError for a small vocabulary.

    A corpus with too few pairs gives fewer tokens than `vocab_size`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise ConfigError(
            f'config.data.tokenizer.vocab_size: expected more than {len(alphabet)}, the bytes and '
            f'an end of text, got {vocab_size}'
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_bytes(texts, TRAINING_BYTES), trainer)
    return Library(tokenizer, {'bos': END_OF_TEXT, 'eos': END_OF_TEXT})


def _first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        yield text
        limit -= len(text.encode())
        if limit <= 0:
            return


def choose(config: TokenizerConfig, folder: Path, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """The tokenizer of a config; one that is learned from `texts()` is kept in `folder`."""
    if not config.is_learned:
        return Bytes() if config.name == 'bytes' else load(config.name)
    if not folder.is_dir():
        bpe = config.name == 'bpe'
        learned = train_bpe(texts(), config.vocab_size) if bpe else characters(texts())
        partial = folder.with_name(f'{folder.name}.partial')
        partial.mkdir(parents=True, exist_ok=True)
        learned.save(partial)
        partial.rename(folder)
    return load(folder)
