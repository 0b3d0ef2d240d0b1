"""Text: windows cover every byte once, documents stay whole, and the library's source is there."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigjax import schema
from bigjax.config import DataConfig
from bigjax.data import batches
from bigjax.data.core import everything
from bigjax.data.load import load
from bigjax.data.text import Windows, split_documents
from bigjax.errors import DataError

texts = st.lists(st.binary(max_size=60), min_size=1, max_size=8).filter(any)


def loaded(**options):
    return load(schema.build(DataConfig, {'name': 'text', **options}, 'config.data'))


def stream_of(source):
    """The targets of weight 1, in order."""
    rows = everything(source)
    return bytes(rows['targets'][rows['weights'] == 1].tolist())


@given(texts, st.integers(1, 20))
def test_windows_predict_every_byte_once_from_the_one_before(parts, length):
    stream = b''.join(b'\0' + part for part in parts)
    source = Windows.of(parts, length)
    rows = everything(source)
    assert {name: array.shape for name, array in rows.items()} == dict.fromkeys(
        ('inputs', 'targets', 'weights'), (-(-(len(stream) - 1) // length), length)
    )
    real = rows['weights'] == 1
    assert set(np.unique(rows['weights'])) <= {0, 1}
    assert bytes(rows['targets'][real].tolist()) == stream[1:]
    assert bytes(rows['inputs'][real].tolist()) == stream[:-1]


def test_evaluation_weighs_every_byte_once():
    source = Windows.of([b'twenty-three characters'], 10)
    total = sum(
        batches.eval_batch(source, index, 2, slice(0, 2))['weights'].sum()
        for index in range(batches.num_eval_batches(source, 2))
    )
    assert total == 23


def test_rows_are_int32_and_repeatable():
    source = Windows.of([bytes(range(100))], 8)
    rows = source[np.array([11, 0, 11])]
    assert [array.dtype for array in rows.values()] == [np.int32, np.int32, np.float32]
    np.testing.assert_array_equal(rows['targets'][0], rows['targets'][2])
    np.testing.assert_array_equal(rows['inputs'][1], [0, 0, 1, 2, 3, 4, 5, 6])


def test_documents_stay_whole_and_are_split_by_bytes_whatever_their_order():
    rng = np.random.default_rng(0)
    documents = [rng.bytes(rng.integers(1, 400)) for _ in range(200)]
    splits = split_documents(documents)
    assert sorted(chain(*splits.values())) == sorted(documents)
    sizes = {name: len(b''.join(part)) for name, part in splits.items()}
    total = sum(sizes.values())
    assert abs(sizes['train'] - 0.9 * total) < 400
    assert abs(sizes['val'] - 0.05 * total) < 400
    shuffled = [documents[index] for index in rng.permutation(200)]
    assert split_documents(shuffled) == splits


def test_few_documents_are_cut():
    documents = [bytes([letter]) * 100 for letter in b'ab']
    assert split_documents(documents) == {
        'train': [b'a' * 90, b'b' * 90],
        'val': [b'a' * 5, b'b' * 5],
        'test': [b'a' * 5, b'b' * 5],
    }


def test_files_folders_and_globs(tmp_path):
    (tmp_path / 'deep').mkdir()
    for name, letter in (('one.txt', 'a'), ('deep/two.txt', 'b'), ('three.md', 'c')):
        (tmp_path / name).write_text(letter * 60)

    def letters(*paths, **options):
        splits = loaded(path=[str(tmp_path / path) for path in paths], **options)
        return set(b''.join(map(stream_of, splits.sources.values())).decode()) - {'\0'}

    assert letters('one.txt') == {'a'}
    assert letters('.') == {'a', 'b'}
    assert letters('.', pattern='*.md') == {'c'}
    assert letters('**/t*') == {'b', 'c'}
    assert letters('three.md', 'deep') == {'b', 'c'}


def test_the_spec_and_reading_back(tmp_path):
    (tmp_path / 'a.txt').write_text('naïve ' * 100)
    splits = loaded(path=str(tmp_path), sequence_length=30)
    spec = splits.spec
    assert (spec.vocab_size, spec.tokens, spec.inputs.shape) == (256, 30, (30,))
    assert spec.targets.shape == (30,)
    row = splits.sources['train'][np.array([0])]
    assert splits.decode(row['targets'][0]) == ('naïve ' * 100).encode()[:30].decode()


def test_the_standard_library_is_the_default_text():
    splits = loaded()
    sizes = {name: int(everything(s)['weights'].sum()) for name, s in splits.sources.items()}
    assert sizes['train'] > 5_000_000
    assert sizes['val'] > 200_000
    assert sizes['test'] > 200_000
    everywhere = b''.join(stream_of(source) for source in splits.sources.values())
    assert b'class OrderedDict(dict):' in everywhere
    assert b'import numpy' not in everywhere  # installed packages are not the library


def test_faults_of_the_text(tmp_path):
    with pytest.raises(DataError, match=r"config\.data\.path: no file matches '.*nowhere'"):
        loaded(path=str(tmp_path / 'nowhere'))
    with pytest.raises(DataError, match='no file matches'):
        loaded(path=str(tmp_path))
    (tmp_path / 'a.txt').write_text('')
    with pytest.raises(DataError, match='the text is empty'):
        loaded(path=str(tmp_path))
    (tmp_path / 'a.txt').write_text('abc')
    with pytest.raises(DataError, match=r"no records in its split '(val|test)'"):
        loaded(path=str(tmp_path))
    (tmp_path / 'b.txt').write_bytes('größe'.encode('latin-1'))
    with pytest.raises(DataError, match=r'b\.txt: invalid UTF-8 at byte 2 \(0xf6\)'):
        loaded(path=str(tmp_path))
