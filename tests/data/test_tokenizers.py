"""Tokenizers: ids others know, round trips, what is saved loads alike, and tables of bytes."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigjax.data import tokenizers
from bigjax.data.tokenizers import Bytes, TokenizerConfig, characters, load, train_bpe
from bigjax.errors import ConfigError, DataError

SHARED = Path(__file__).parents[3] / 'shared' / 'data'
ALPHABET = 'abc é€🙂\n'
CORPUS = ['the cat sat on the mat\n', 'naïve cats — they sat, 🙂 they sat\n'] * 20
BPE = train_bpe(CORPUS, 280)
CHARACTERS = characters([ALPHABET])
WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'un', '##aff', '##able', 'the', 'cat', 'é']


@pytest.fixture(scope='module')
def word_piece(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bert')
    (folder / 'vocab.txt').write_text('\n'.join(WORDS))
    return folder


texts = st.text(st.characters(exclude_characters='\0', codec='utf-8'))


@given(texts.filter(lambda text: '<|endoftext|>' not in text))
def test_bytes_and_bpe_read_back_any_text(text):
    for tokenizer in (Bytes(), BPE):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
        batch = tokenizer.encode_batch([text, 'x', text])
        assert [part.tolist() for part in batch] == [ids, tokenizer.encode('x'), ids]


@given(st.text(ALPHABET))
def test_characters_read_back_their_text(text):
    ids = CHARACTERS.encode(text)
    assert ids == [sorted(ALPHABET).index(character) for character in text]
    assert CHARACTERS.decode(ids) == text
    assert CHARACTERS.token_bytes()[ids].sum() == len(text.encode())


@given(st.lists(st.integers(0, 255)))
def test_any_ids_have_a_text(ids):
    for tokenizer in (Bytes(), BPE):
        assert isinstance(tokenizer.decode(np.array(ids, np.int32)), str)
    assert Bytes().decode(ids, skip_special=False) == bytes(ids).decode(errors='replace')


def test_special_tokens_are_shown_on_demand():
    assert BPE.vocab_size == 280
    assert BPE.special == {'bos': 0, 'eos': 0}
    ids = [0, *BPE.encode('cat'), 0]
    assert BPE.decode(ids) == 'cat'
    assert BPE.decode(ids, skip_special=False) == '<|endoftext|>cat<|endoftext|>'
    assert BPE.encode('cat<|endoftext|>cat') == [*BPE.encode('cat'), 0, *BPE.encode('cat')]
    assert BPE.token_bytes()[0] == 0
    assert Bytes().decode([0, 97, 0]) == 'a'


def test_a_strange_character_is_named():
    with pytest.raises(DataError, match="the character 'x' is not in the vocabulary of 8"):
        CHARACTERS.encode_batch(['abc', 'abxc'])


def test_a_small_vocabulary_is_refused():
    with pytest.raises(ConfigError, match=r'vocab_size: expected more than 256.*got 256'):
        train_bpe(CORPUS, 256)


@pytest.mark.parametrize('tokenizer', [Bytes(), CHARACTERS, BPE], ids=['bytes', 'chars', 'bpe'])
def test_what_is_saved_loads_alike(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.special == tokenizer.special
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.encode('cab a') == tokenizer.encode('cab a')


def test_fingerprints_tell_tokenizers_apart():
    others = [Bytes(), CHARACTERS, BPE, characters(['ab']), train_bpe(CORPUS, 270)]
    assert len({tokenizer.fingerprint for tokenizer in others}) == len(others)


def test_word_piece(word_piece):
    bert = load(word_piece)
    assert bert.special == {'pad': 0, 'unk': 1, 'cls': 2, 'sep': 3, 'mask': 4}
    assert bert.encode('Unaffable THE dog é') == [2, 5, 6, 7, 8, 1, 1, 3]  # accents are stripped
    assert bert.decode([2, 5, 6, 7, 8, 3]) == 'unaffable the'
    assert bert.encode_batch(['the cat'])[0].tolist() == [8, 9]
    assert bert.token_bytes() is None
    (word_piece / 'tokenizer_config.json').write_text('{"do_lower_case": false}')
    assert load(word_piece).encode('THE é') == [2, 1, 10, 3]


def test_pairs_have_types_and_lose_from_the_longer(word_piece):
    bert = load(word_piece / 'vocab.txt')
    [(ids, types)] = bert.encode_pairs([('the the the the the', 'cat')], 6)
    assert ids.tolist() == [2, 8, 8, 3, 9, 3]
    assert types.tolist() == [0, 0, 0, 0, 1, 1]
    [(ids, types)] = bert.encode_pairs([('the the the the the',)], 4)
    assert (ids.tolist(), types.tolist()) == ([2, 8, 8, 3], [0] * 4)
    [(ids, types)] = Bytes().encode_pairs([('abcdef', 'xy')], 6)
    assert (bytes(ids.tolist()), types.tolist()) == (b'abc\0xy', [0, 0, 0, 0, 1, 1])
    [(ids, _)] = Bytes().encode_pairs([('abcdef', 'uvwxyz')], 7)
    assert bytes(ids.tolist()) == b'abc\0uvw'
    assert len(Bytes().encode_pairs([('abcdef',)], 4)[0][0]) == 4


def test_names_of_special_tokens(tmp_path):
    train_bpe(CORPUS, 260).save(tmp_path)
    (tmp_path / 'tokenizer_config.json').unlink()
    assert load(tmp_path / 'tokenizer.json').special == {'bos': 0, 'eos': 0}  # by its usual string
    settings = {'eos_token': {'content': 'a'}, 'pad_token': '<|endoftext|>', 'bos_token': None}
    (tmp_path / 'special_tokens_map.json').write_text(json.dumps(settings))
    assert load(tmp_path).special == {'bos': 0, 'eos': load(tmp_path).encode('a')[0], 'pad': 0}


def test_gpt2(tmp_path):
    if not SHARED.is_dir():
        pytest.skip('the vocabulary of GPT-2 is not in this checkout')
    for source, name in (('gpt2_encoder.json', 'encoder.json'), ('gpt2_vocab.bpe', 'vocab.bpe')):
        (tmp_path / name).symlink_to(SHARED / source)
    gpt2 = load(tmp_path)
    assert gpt2.encode('Hello world') == [15496, 995]
    assert gpt2.encode("I'll    go\n\n") == [40, 1183, 220, 220, 220, 467, 628]
    assert gpt2.special == {'bos': 50256, 'eos': 50256}
    assert gpt2.vocab_size == 50257
    text = 'Ünïcödé 🙂'
    assert gpt2.token_bytes()[gpt2.encode(text)].sum() == len(text.encode())
    assert load(tmp_path / 'encoder.json').fingerprint == gpt2.fingerprint


def test_sentence_piece(tmp_path):
    spm = pytest.importorskip('sentencepiece', reason='an extra: bigjax[hf]')
    (tmp_path / 'text.txt').write_text(''.join(CORPUS))
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / 'text.txt'),
        model_prefix=str(tmp_path / 'tiny'),
        vocab_size=22,
        minloglevel=2,
    )
    tokenizer = load(tmp_path / 'tiny.model')
    assert tokenizer.special == {'bos': 1, 'eos': 2, 'unk': 0}
    ids = tokenizer.encode('the cat sat')
    assert ids[0] == 1
    assert tokenizer.encode_batch(['the cat sat'])[0].tolist() == ids[1:]
    assert tokenizer.decode([*ids, 2]) == 'the cat sat'
    assert tokenizer.decode(list(range(22)))
    assert tokenizer.token_bytes() is None
    [(ids, types)] = tokenizer.encode_pairs([('the', 'cat')], 9)
    assert len(ids) == len(types) <= 9
    tokenizer.save(tmp_path / 'saved')
    assert load(tmp_path / 'saved').fingerprint == tokenizer.fingerprint
    (tmp_path / 'tokenizer_config.json').write_text('{"add_bos_token": false}')
    assert load(tmp_path / 'tiny.model').encode('cat') == tokenizer.encode('cat')[1:]


def test_faults_of_tokenizers(tmp_path):
    with pytest.raises(DataError, match=r'no such tokenizer; expected bytes'):
        load(tmp_path / 'gpt3')
    with pytest.raises(DataError, match=r'expected tokenizer\.json, encoder\.json'):
        load(tmp_path)
    for name in ('a.bin', 'a.pt', 'a.pkl'):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match=rf'a \{name[1:]} file, which is not read'):
            load(tmp_path / name)
    (tmp_path / 'tokenizer.json').write_text('{}')
    with pytest.raises(DataError, match=r'not a tokenizer\.json'):
        load(tmp_path)


@pytest.mark.parametrize('text', ['[1, 2]', '7', '"x"', 'null'])
@pytest.mark.parametrize('name', ['special_tokens_map.json', 'encoder.json'])
def test_json_that_is_no_object_is_refused(tmp_path, name, text):
    (tmp_path / 'encoder.json').write_text('{"a": 0}')
    (tmp_path / 'vocab.bpe').write_text('')
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f'{name}: expected a JSON object, got'):
        load(tmp_path)


def test_a_learned_tokenizer_is_kept(tmp_path):
    config = TokenizerConfig('bpe', 270)
    first = tokenizers.choose(config, tmp_path / 'here', lambda: CORPUS)
    again = tokenizers.choose(config, tmp_path / 'here', lambda: pytest.fail('learned twice'))
    assert first.fingerprint == again.fingerprint
    assert first.vocab_size == 270
