"""Tokenizers from files: the hub's, GPT-2's, BERT's vocabularies, SentencePiece models."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigjax.data.tokenizers.kinds import CONFIG, Bytes, Library, SentencePiece, Tokenizer
from bigjax.errors import DataError, EnvironmentProblem

END_OF_TEXT = '<|endoftext|>'
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
        settings |= _object(file) if file.is_file() else {}
    return settings


def _object(file: Path) -> dict[str, Any]:
    """Raises: DataError."""
    try:
        value = json.loads(file.read_text())
    except ValueError as error:
        raise DataError(f'{file}: expected JSON: {error}') from None
    if not isinstance(value, dict):
        raise DataError(f'{file}: expected a JSON object, got {value!r:.60}')
    return value


def _library(tokenizer: Any, settings: Mapping[str, Any]) -> Library:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    names: dict[str, str] = {}
    for role, usual in USUAL.items():
        given = settings.get(f'{role}_token')
        given = given.get('content') if isinstance(given, dict) else given
        candidates = (given,) if given and isinstance(given, str) else usual
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

    ids = _object(vocabulary)
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
