"""Text to token ids and back: bytes, characters, trained BPE, and the tokenizers of others.

One interface serves training data, generation and the exchange of models. Bytes are numpy's, a
SentencePiece model is read by its own package, all the rest by the `tokenizers` library, which
keeps it as `tokenizer.json`. Which tokens are special stands beside it in `tokenizer_config.json`,
as on the Hugging Face hub; without that file they are known by their usual strings.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bigjax.errors import ConfigError, DataError, EnvironmentProblem
from bigjax.schema import PositiveInt

END_OF_TEXT = '<|endoftext|>'
TRAINING_BYTES = 2**30
"""BPE is trained on the first so many bytes of a corpus: more change little, and cost memory."""

USUAL = {
    'bos': ('<s>', '<|begin_of_text|>', '<bos>', END_OF_TEXT),
    'eos': ('</s>', '<|end_of_text|>', '<eos>', END_OF_TEXT, '<|im_end|>'),
    'pad': ('[PAD]', '<pad>'),
    'unk': ('[UNK]', '<unk>'),
    'cls': ('[CLS]',),
    'sep': ('[SEP]',),
    'mask': ('[MASK]', '<mask>'),
}
PICKLES = ('.bin', '.pt', '.pth', '.pkl')
CONFIG = 'tokenizer_config.json'


class Tokenizer(Protocol):
    """special: the ids of bos, eos, pad, unk, cls, sep, mask, as far as there are such.

    fingerprint: sha256 of all that defines the tokenizer.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def special(self) -> Mapping[str, int]: ...
    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str) -> list[int]:
        """Ids of one text, with the special tokens that models of this tokenizer expect.

        As on the hub, a special token that is written out in a text becomes that token.
        """
        ...

    def encode_batch(self, texts: Sequence[str], special: bool = False) -> list[np.ndarray]:
        """Ids of many texts, in parallel. Raises: DataError for what has no token."""
        ...

    def encode_pairs(
        self, pairs: Sequence[tuple[str, ...]], length: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and token types (0: first text, 1: second) of single texts or of pairs.

        With special tokens, and cut to `length`, where a pair loses from its longer text.
        """
        ...

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of any ids in range; bytes that are not UTF-8 become U+FFFD."""
        ...

    def token_bytes(self) -> np.ndarray | None:
        """[vocab_size]: the bytes each token stands for, 0 if special; None if that varies."""
        ...

    def save(self, folder: Path) -> None:
        """Into files from which `load(folder)` makes the same tokenizer."""
        ...


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


@dataclass(frozen=True)
class Bytes:
    """UTF-8 as it is. Byte 0, which text does not hold, begins a document and ends it."""

    vocab_size = 256
    special = {'bos': 0, 'eos': 0}  # noqa: RUF012  a constant of the class, as a Protocol reads it
    fingerprint = hashlib.sha256(b'bytes').hexdigest()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str], special: bool = False) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def encode_pairs(
        self, pairs: Sequence[tuple[str, ...]], length: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        return [_joined([self.encode(text) for text in pair], length, [0]) for pair in pairs]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return bytes(i for i in ids if i or not skip_special).decode(errors='replace')

    def token_bytes(self) -> np.ndarray:
        return np.minimum(np.arange(256), 1)

    def save(self, folder: Path) -> None:
        _write(folder / CONFIG, {'tokenizer_class': 'bytes'})


@dataclass(frozen=True)
class Library:
    """A tokenizer of the `tokenizers` library. names: which token is bos, eos, ..."""

    tokenizer: Any
    names: Mapping[str, str]

    @property
    def vocab_size(self) -> int:
        return max(self.tokenizer.get_vocab().values()) + 1

    @property
    def special(self) -> Mapping[str, int]:
        ids = {role: self.tokenizer.token_to_id(token) for role, token in self.names.items()}
        return {role: id for role, id in ids.items() if id is not None}

    @property
    def fingerprint(self) -> str:
        text = self.tokenizer.to_str() + json.dumps(dict(self.names), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text], special=True)[0].tolist()

    def encode_batch(self, texts: Sequence[str], special: bool = False) -> list[np.ndarray]:
        return [np.array(e.ids, np.uint32) for e in self._encoded(self.tokenizer, texts, special)]

    def encode_pairs(
        self, pairs: Sequence[tuple[str, ...]], length: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        import tokenizers

        cutting = tokenizers.Tokenizer.from_str(self.tokenizer.to_str())
        cutting.enable_truncation(length)
        texts = [pair if len(pair) > 1 else pair[0] for pair in pairs]
        encoded = self._encoded(cutting, texts, special=True)
        return [(np.array(e.ids, np.uint32), np.array(e.type_ids, np.uint32)) for e in encoded]

    def _encoded(self, tokenizer: Any, texts: Sequence, special: bool) -> list:
        try:
            return tokenizer.encode_batch_fast(texts, add_special_tokens=special)
        except Exception as error:  # the library raises no other class
            known = self.tokenizer.get_vocab()
            characters = itertools.chain.from_iterable(itertools.chain.from_iterable(texts))
            missing = next((c for c in characters if c not in known), None)
            if 'UNK' not in str(error) or missing is None:
                raise
            raise DataError(
                f'the character {missing!r} is not in the vocabulary of {len(known)}; use a '
                f'tokenizer that has it, such as bytes'
            ) from None

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def token_bytes(self) -> np.ndarray | None:
        parts = json.loads(self.tokenizer.to_str())
        decoder = parts['decoder'] or {}
        kinds = {part['type'] for part in (decoder, *decoder.get('decoders', ()))}
        added = {token['id']: token for token in parts['added_tokens']}
        sizes = np.zeros(self.vocab_size, np.int64)
        for token, id in self.tokenizer.get_vocab().items():
            if id in added:
                sizes[id] = 0 if added[id]['special'] else len(token.encode())
            elif parts['model']['type'] == 'BPE' and 'ByteLevel' in kinds:
                sizes[id] = len(token)  # its alphabet has a letter for each byte
            elif 'Fuse' in kinds and len(token) == 1:
                sizes[id] = len(token.encode())
            else:
                return None
        return sizes

    def save(self, folder: Path) -> None:
        _write(folder / CONFIG, {f'{role}_token': token for role, token in self.names.items()})
        self.tokenizer.save(str(folder / 'tokenizer.json'))


@dataclass(frozen=True)
class SentencePiece:
    """A SentencePiece model. before, after: special ids around one text, as its models expect."""

    model: Any
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size()

    @property
    def special(self) -> Mapping[str, int]:
        ids = {role: getattr(self.model, f'{role}_id')() for role in ('bos', 'eos', 'pad', 'unk')}
        return {role: id for role, id in ids.items() if id >= 0}

    @property
    def fingerprint(self) -> str:
        around = json.dumps([self.before, self.after]).encode()
        return hashlib.sha256(self.model.serialized_model_proto() + around).hexdigest()

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text], special=True)[0].tolist()

    def encode_batch(self, texts: Sequence[str], special: bool = False) -> list[np.ndarray]:
        before, after = (self.before, self.after) if special else ((), ())
        encoded = self.model.encode(list(texts), num_threads=os.cpu_count())
        return [np.array([*before, *ids, *after], np.uint32) for ids in encoded]

    def encode_pairs(
        self, pairs: Sequence[tuple[str, ...]], length: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        rows = []
        for pair in pairs:
            room = length - len(self.before) - len(self.after)
            ids, types = _joined(self.model.encode(list(pair)), room, self.after)
            ids = np.concatenate([self.before, ids, self.after]).astype(np.uint32)
            rows.append((ids, np.pad(types, (len(self.before), len(self.after)), mode='edge')))
        return rows

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        ids = [int(i) for i in ids]  # control tokens have no text: skipped or not, none is shown
        return self.model.decode(ids)

    def token_bytes(self) -> None:
        return None

    def save(self, folder: Path) -> None:
        flags = {'add_bos_token': bool(self.before), 'add_eos_token': bool(self.after)}
        _write(folder / CONFIG, flags)
        (folder / 'tokenizer.model').write_bytes(self.model.serialized_model_proto())


def _joined(
    texts: Sequence[Sequence[int]], length: int, between: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and types of one text or two; two lose from the longer one until they fit."""
    first, *second = (list(text) for text in texts)
    if not second:
        return np.array(first[:length], np.uint32), np.zeros(min(len(first), length), np.uint32)
    room = length - len(between)
    kept = min(len(first), max(room - len(second[0]), room - room // 2))
    first = [*first[:kept], *between]
    ids = [*first, *second[0][: room - kept]]
    return np.array(ids, np.uint32), (np.arange(len(ids)) >= len(first)).astype(np.uint32)


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


def load(path: Path | str) -> Tokenizer:
    """A tokenizer from a folder, or from one of its files.

    Known are tokenizer.json; encoder.json with vocab.bpe, or vocab.json with merges.txt (byte-level
    BPE); vocab.txt (WordPiece); *.model (SentencePiece). Raises: DataError, EnvironmentProblem.
    """
    path = Path(path).expanduser()
    if path.suffix in PICKLES:
        raise DataError(
            f'{path}: expected a tokenizer, got a {path.suffix} file, which is not read'
        )
    if not path.exists():
        raise DataError(
            f'{path}: no such tokenizer; expected bytes, characters, bpe, or a folder or file'
        )
    folder = path if path.is_dir() else path.parent
    names = {file.name for file in folder.iterdir()} if path.is_dir() else {path.name}
    settings = _settings(folder)
    try:
        if settings.get('tokenizer_class') == 'bytes':
            return Bytes()
        if 'tokenizer.json' in names or (path.is_file() and path.suffix == '.json'):
            file = folder / 'tokenizer.json' if path.is_dir() else path
            if file.name not in ('encoder.json', 'vocab.json'):
                return _from_json(file, settings)
        for vocabulary, merges in (('encoder.json', 'vocab.bpe'), ('vocab.json', 'merges.txt')):
            if names & {vocabulary, merges}:
                return _byte_level(folder / vocabulary, folder / merges, settings)
        if 'vocab.txt' in names:
            return _word_piece(folder / 'vocab.txt', settings)
        if models := sorted(name for name in names if name.endswith('.model')):
            return _sentence_piece(folder / models[0], settings)
    except (OSError, ValueError) as error:
        raise DataError(f'{path}: the tokenizer cannot be read: {error}') from error
    raise DataError(
        f'{path}: expected tokenizer.json, encoder.json and vocab.bpe, vocab.json and merges.txt, '
        f'vocab.txt or *.model'
    )


def _settings(folder: Path) -> dict[str, Any]:
    """What the two files of the hub say, as far as they are there. Raises: DataError."""
    settings: dict[str, Any] = {}
    for name in ('special_tokens_map.json', CONFIG):
        file = folder / name
        try:
            settings |= json.loads(file.read_text()) if file.is_file() else {}
        except ValueError as error:
            raise DataError(f'{file}: expected JSON: {error}') from None
    return settings


def _library(tokenizer: Any, settings: Mapping[str, Any]) -> Library:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    names: dict[str, str] = {}
    for role, usual in USUAL.items():
        given = settings.get(f'{role}_token')
        given = given.get('content') if isinstance(given, dict) else given
        candidates = (given,) if given else usual
        known = [token for token in candidates if tokenizer.token_to_id(token) is not None]
        if known:
            names[role] = known[0]
    return Library(tokenizer, names)


def _from_json(file: Path, settings: Mapping[str, Any]) -> Library:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(file.read_text())
    except Exception as error:  # the library raises no other class
        raise DataError(f'{file}: not a tokenizer.json: {error}') from None
    return _library(tokenizer, settings)


def _byte_level(vocabulary: Path, merges: Path, settings: Mapping[str, Any]) -> Library:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    ids = json.loads(vocabulary.read_text())
    lines = merges.read_text().split('\n')
    pairs = [line.split(' ') for line in lines if line and not line.startswith('#version')]
    tokenizer = Tokenizer(models.BPE(ids, [(left, right) for left, right in pairs]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token in _all_usual() if token in ids])
    return _library(tokenizer, settings)


def _word_piece(file: Path, settings: Mapping[str, Any]) -> Library:
    """BERT's own: uncased, unless do_lower_case says otherwise."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    ids = {token: id for id, token in enumerate(file.read_text().splitlines())}
    if lacking := {'[UNK]', '[CLS]', '[SEP]'} - ids.keys():
        raise DataError(f'{file}: no token {sorted(lacking)[0]}; expected the vocabulary of a BERT')
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token='[UNK]'))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=settings.get('do_lower_case', True))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(
        ('[SEP]', ids['[SEP]']), ('[CLS]', ids['[CLS]'])
    )
    tokenizer.add_special_tokens([token for token in _all_usual() if token in ids])
    return _library(tokenizer, settings)


def _all_usual() -> list[str]:
    return list(dict.fromkeys(itertools.chain.from_iterable(USUAL.values())))


def _sentence_piece(file: Path, settings: Mapping[str, Any]) -> SentencePiece:
    """Around one text: what the settings say, else bos if there is one, else eos, as in T5."""
    try:
        import sentencepiece
    except ImportError:
        raise EnvironmentProblem(
            f"{file} needs the package sentencepiece; pip install 'bigjax[hf]'"
        ) from None
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except RuntimeError as error:
        raise DataError(f'{file}: not a SentencePiece model: {error}') from None
    bos, eos = model.bos_id(), model.eos_id()
    before = (bos,) if bos >= 0 and settings.get('add_bos_token', True) else ()
    after = (eos,) if eos >= 0 and settings.get('add_eos_token', bos < 0) else ()
    return SentencePiece(model, before, after)


def _write(file: Path, settings: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=2))
