"""Text: documents stay whole and are split like any rows, few are cut in order, reading back."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from bigjax import schema
from bigjax.config import DataConfig
from bigjax.data import batches, text
from bigjax.data.core import everything
from bigjax.data.load import load
from bigjax.errors import ConfigError, DataError

SHAKESPEARE = Path(__file__).parents[3] / 'shared' / 'data' / 'tinyshakespeare.txt'


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))


def loaded(**options):
    return load(schema.build(DataConfig, {'name': 'text', **options}, 'config.data'))


def stream_of(source):
    """The targets of weight 1, in order."""
    rows = everything(source)
    return rows['targets'][rows['weights'] == 1]


def text_of(source):
    return bytes(stream_of(source).tolist()).decode()


def write_lines(folder, count):
    lines = [f'line {index} of this text' for index in range(count)]
    (folder / 'a.txt').write_text('\n'.join(lines))
    return lines


def test_documents_stay_whole(tmp_path):
    lines = write_lines(tmp_path, 200)
    splits = loaded(path=str(tmp_path), document='line')
    found = {name: ('\0' + text_of(source)).split('\0') for name, source in splits.sources.items()}
    parts = {name: [line for line in part if line] for name, part in found.items()}
    assert sorted(chain(*parts.values())) == sorted(lines)
    assert {name: len(part) for name, part in parts.items()} == {
        'train': 180,
        'val': 10,
        'test': 10,
    }
    again = loaded(path=str(tmp_path), document='line', split_seed=1)
    assert text_of(again.sources['val']) != text_of(splits.sources['val'])


def test_few_documents_are_cut_at_lines_and_split_in_order(tmp_path):
    (tmp_path / 'a.txt').write_text(''.join(f'{index:04}\n' for index in range(2000)))
    splits = loaded(path=str(tmp_path))
    parts = [text_of(splits.sources[name]) for name in ('train', 'val', 'test')]
    numbers = [[int(word) for word in part.split()] for part in parts]
    assert numbers[0] == list(range(len(numbers[0])))
    assert abs(len(numbers[0]) - 1800) < 20
    assert numbers[0][-1] < numbers[1][-1] < numbers[2][-1] == 1999
    sliced = loaded(path=str(tmp_path), splits={'train': 'train[:50%]', 'val': 'train[50%:]'})
    assert abs(len(text_of(sliced.sources['train']).split()) - 1000) < 20
    assert text_of(sliced.sources['val']).endswith('1998\n1999\n')


def test_splits_of_its_own(tmp_path):
    for name in ('train', 'val'):
        (tmp_path / f'{name}.jsonl').write_text(f'{{"body": "{name} text"}}\n' * 3)
    splits = loaded(path=str(tmp_path / '{split}.jsonl'), column='body')
    assert set(splits.sources) == {'train', 'val'}
    assert text_of(splits.sources['val']) == 'val text\0val text\0val text'


def test_every_tokenizer(tmp_path):
    write_lines(tmp_path, 200)
    for tokenizer, vocab in (('characters', 25), ({'name': 'bpe', 'vocab_size': 270}, 270)):
        splits = loaded(path=str(tmp_path), document='line', tokenizer=tokenizer)
        spec = splits.spec
        assert spec.vocab_size == splits.tokenizer.vocab_size
        assert abs(spec.vocab_size - vocab) <= 5
        targets = np.concatenate([stream_of(source) for source in splits.sources.values()])
        assert targets.max() < spec.vocab_size
        assert abs(spec.token_bytes[targets].sum() - len((tmp_path / 'a.txt').read_text())) < 300
    splits.tokenizer.save(tmp_path / 'saved')
    again = loaded(path=str(tmp_path), document='line', tokenizer=str(tmp_path / 'saved'))
    np.testing.assert_array_equal(
        everything(again.sources['train'])['inputs'], everything(splits.sources['train'])['inputs']
    )


def test_strides_are_of_evaluation(tmp_path):
    write_lines(tmp_path, 300)
    options = {'path': str(tmp_path), 'document': 'line', 'sequence_length': 32}
    plain, strided = loaded(**options), loaded(**options, stride=8)
    assert len(strided.sources['train']) == len(plain.sources['train'])
    for name in ('val', 'test'):
        assert len(strided.sources[name]) > 3 * len(plain.sources[name])
        assert text_of(strided.sources[name]) == text_of(plain.sources[name])


@pytest.mark.parametrize('packing', ['isolated', 'best_fit'])
def test_isolated_documents(tmp_path, packing):
    write_lines(tmp_path, 100)
    splits = loaded(path=str(tmp_path), document='line', packing=packing, sequence_length=64)
    row = splits.sources['train'][np.array([1])]
    assert set(row['inputs']) == {'tokens', 'segments', 'positions'} == set(splits.spec.inputs)
    assert row['inputs']['segments'].max() >= 2
    first = {name: leaf[0] for name, leaf in row['inputs'].items()}
    assert 'of this text' in splits.decode(first)
    batch = batches.eval_batch(splits.sources['val'], 0, 16, slice(0, 16))
    assert batch['weights'].shape == (16, 64)


def test_evaluation_weighs_every_byte_once(tmp_path):
    (tmp_path / 'a.txt').write_text('x' * 400)
    total = sum(
        batches.eval_batch(source, index, 4, slice(0, 4))['weights'].sum()
        for source in loaded(path=str(tmp_path), sequence_length=7).sources.values()
        for index in range(batches.num_eval_batches(source, 4))
    )
    assert total == 401 - 3  # with a separator; the first token of each split has none before it


def test_files_folders_and_globs(tmp_path):
    (tmp_path / 'deep').mkdir()
    for name, letter in (('one.txt', 'a'), ('deep/two.txt', 'b'), ('three.md', 'c')):
        (tmp_path / name).write_text(letter * 60)

    def letters(*paths, **options):
        splits = loaded(path=[str(tmp_path / path) for path in paths], **options)
        return set(''.join(map(text_of, splits.sources.values()))) - {'\0'}

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
    everywhere = ''.join(text_of(source) for source in splits.sources.values())
    assert 'class OrderedDict(dict):' in everywhere
    assert 'import numpy' not in everywhere  # installed packages are not the library


def test_tiny_shakespeare_has_65_characters():
    if not SHAKESPEARE.is_file():
        pytest.skip('Tiny Shakespeare is not in this checkout')
    splits = loaded(
        path=str(SHAKESPEARE),
        tokenizer='characters',
        splits={'train': 'train[:90%]', 'val': 'train[90%:]'},
    )
    assert splits.spec.vocab_size == 65
    whole = SHAKESPEARE.read_text()
    train, val = (splits.decode(stream_of(splits.sources[name])) for name in ('train', 'val'))
    assert whole.startswith(whole[0] + train)
    assert whole.endswith(val)
    assert abs(len(train) / len(whole) - 0.9) < 0.002
    assert len(train) + len(val) == len(whole) - 2  # each split's first has nothing before it


def test_the_summary_of_a_corpus(tmp_path):
    write_lines(tmp_path, 30)
    data = DataConfig('text', options={'path': str(tmp_path), 'document': 'line'})
    said = text.summary(data)
    assert said.startswith('30 documents, ')
    assert Path(said.split(' in ')[1]).is_dir()
    with pytest.raises(ConfigError, match="only 'text' is tokenised beforehand, not digits"):
        text.summary(DataConfig('digits'))


def test_faults_of_the_text(tmp_path):
    with pytest.raises(DataError, match=r"config\.data\.path: no file matches '.*nowhere'"):
        loaded(path=str(tmp_path / 'nowhere'))
    with pytest.raises(DataError, match='no file matches'):
        loaded(path=str(tmp_path))
    (tmp_path / 'a.txt').write_text('')
    with pytest.raises(DataError, match='the text is empty'):
        loaded(path=str(tmp_path))
    (tmp_path / 'a.txt').write_text('abc')
    with pytest.raises(DataError, match=r"split '(val|test)' of data 'text' gets no rows"):
        loaded(path=str(tmp_path))
    with pytest.raises(ConfigError, match='stride=9 leaves tokens out'):
        loaded(path=str(tmp_path), stride=9, sequence_length=8)
    with pytest.raises(ConfigError, match='stride needs windows'):
        loaded(path=str(tmp_path), stride=4, packing='best_fit')
