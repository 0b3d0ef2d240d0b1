"""What a tokenizer is, and the three there are: bytes, the `tokenizers` library, SentencePiece."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bigjax.errors import DataError

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


def _write(file: Path, settings: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=2))
