"""Labelled text: tokens, masks and targets of every row, splits by class, and what is refused."""

import numpy as np
import pytest

from bigjax import schema
from bigjax.config import DataConfig
from bigjax.data.core import everything
from bigjax.data.load import load
from bigjax.data.tokenizers import Bytes
from bigjax.errors import ConfigError, DataError

CLASSES = ('bad', 'good', 'so-so')


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))


@pytest.fixture
def table(tmp_path):
    """Ninety records: title, review, label, score."""
    lines = [f'title {i},review {i},{CLASSES[i % 3]},{i / 4}' for i in range(90)]
    file = tmp_path / 'a.csv'
    file.write_text('\n'.join(['title,review,label,score', *lines]))
    return file


def loaded(path, **options):
    values = {'name': 'labelled_text', 'path': str(path), **options}
    return load(schema.build(DataConfig, values, 'config.data'))


def number_of(text):
    return int(text.split()[-1])


def test_rows_are_tokens_with_a_mask(table):
    splits = loaded(table, text='review', sequence_length=12)
    assert splits.spec.class_names == CLASSES
    assert (splits.spec.num_classes, splits.spec.vocab_size, splits.spec.tokens) == (3, 256, 12)
    seen = set()
    for source in splits.sources.values():
        rows = everything(source)
        assert {name: leaf.dtype for name, leaf in rows['inputs'].items()} == {
            'tokens': np.int32,
            'mask': np.bool_,
        }
        for tokens, mask, target in zip(*rows['inputs'].values(), rows['targets'], strict=True):
            text = splits.decode({'tokens': tokens, 'mask': mask})
            assert text == f'review {number_of(text)}'
            assert mask.sum() == len(text)
            assert target == number_of(text) % 3
            seen.add(number_of(text))
        np.testing.assert_array_equal(np.bincount(rows['targets']), [len(source) // 3] * 3)
    assert seen == set(range(90))


def test_columns_are_joined_or_paired(table):
    joined = loaded(table, text=('title', 'review'), sequence_length=30)
    row = everything(joined.sources['val'])['inputs']
    text = joined.decode({name: leaf[0] for name, leaf in row.items()})
    assert text == f'title {number_of(text)} review {number_of(text)}'
    pairs = loaded(table, text=('title', 'review'), pair=True, sequence_length=30)
    row = {name: leaf[0] for name, leaf in everything(pairs.sources['val'])['inputs'].items()}
    second = row['tokens'][row['token_types'] == 1]
    assert bytes(second.tolist()).decode() == f'review {number_of(text)}'
    with pytest.raises(ConfigError, match='pair needs two columns in text, got 1'):
        loaded(table, text='title', pair=True)


def test_long_texts_are_cut(table):
    rows = everything(loaded(table, text='review', sequence_length=4).sources['train'])
    assert rows['inputs']['mask'].all()
    assert Bytes().decode(rows['inputs']['tokens'][0]) == 'revi'


def test_numbers_are_for_regression(table):
    splits = loaded(table, text='review', label='score')
    assert splits.spec.num_classes is None
    assert splits.spec.targets.dtype == np.float32
    rows = everything(splits.sources['test'])
    texts = [
        splits.decode({'tokens': t, 'mask': m})
        for t, m in zip(*rows['inputs'].values(), strict=True)
    ]
    assert rows['targets'].tolist() == [number_of(text) / 4 for text in texts]
    with pytest.raises(DataError, match='expected numbers'):
        loaded(table, text='review', regression=True)


def test_no_header_integer_labels_and_names(tmp_path):
    file = tmp_path / 'a.csv'
    file.write_text(''.join(f'{10 - i % 2},text {i}\n' for i in range(40)))
    splits = loaded(file, text=1, label=0)
    assert splits.spec.class_names == ('9', '10')
    named = loaded(file, text=1, label=0, class_names=('nine', 'ten'))
    assert named.spec.class_names == ('nine', 'ten')
    rows = everything(named.sources['train'])
    text = named.decode({name: leaf[0] for name, leaf in rows['inputs'].items()})
    assert rows['targets'][0] == 1 - number_of(text) % 2
    with pytest.raises(DataError, match='expected 3 classes, got 2 in column 0: 9, 10'):
        loaded(file, text=1, label=0, class_names=('a', 'b', 'c'))


def test_tokens_are_made_once(table, monkeypatch):
    first = everything(loaded(table, text='review').sources['train'])
    monkeypatch.setattr(Bytes, 'encode_pairs', lambda *_: pytest.fail('tokenised again'))
    again = everything(loaded(table, text='review').sources['train'])
    np.testing.assert_array_equal(first['inputs']['tokens'], again['inputs']['tokens'])


def test_a_learned_tokenizer_and_one_of_others(table, tmp_path):
    splits = loaded(table, text='review', tokenizer={'name': 'bpe', 'vocab_size': 262})
    assert splits.spec.vocab_size == 262
    splits.tokenizer.save(tmp_path / 'saved')
    again = loaded(table, text='review', tokenizer=str(tmp_path / 'saved'))
    for source in (splits, again):
        rows = everything(source.sources['val'])['inputs']
        text = source.decode({name: leaf[0] for name, leaf in rows.items()})
        assert text == f'review {number_of(text)}'


def test_splits_of_its_own_share_their_classes(table):
    for name, labels in (('train', 'ab'), ('test', 'ba')):
        lines = ''.join(f'{{"text": "x", "label": "{label}"}}\n' for label in labels * 10)
        (table.parent / f'{name}.jsonl').write_text(lines)
    splits = loaded(table.parent / '{split}.jsonl')
    assert everything(splits.sources['test'])['targets'].tolist() == [1, 0] * 10
    (table.parent / 'test.jsonl').write_text('{"text": "x", "label": "c"}\n')
    with pytest.raises(DataError, match="split 'test': label 'c' is not in train"):
        loaded(table.parent / '{split}.jsonl')


def test_faults_of_labelled_text(table, tmp_path):
    with pytest.raises(ConfigError, match="no column 'reviews'; did you mean 'review'"):
        loaded(table, text='reviews')
    with pytest.raises(ConfigError, match="class_names: no class 'so-so'"):
        loaded(table, text='review', class_names=('bad', 'good'))
    (tmp_path / 'b.jsonl').write_text('{"text": " ", "label": 1}\n')
    with pytest.raises(DataError, match=r'b\.jsonl, record 0: the text is empty'):
        loaded(tmp_path / 'b.jsonl')
    (tmp_path / 'b.jsonl').write_text('{"text": 5, "label": 1}\n')
    with pytest.raises(DataError, match=r"record 0: expected text in \('text',\), got 5"):
        loaded(tmp_path / 'b.jsonl')
    (tmp_path / 'b.jsonl').write_text('{"text": "x", "label": 1}\n')
    with pytest.raises(DataError, match='expected 2 classes, got 1 in column label: 1'):
        loaded(tmp_path / 'b.jsonl')
