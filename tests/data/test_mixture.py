"""Mixtures: proportions, an epoch that leaves no row out, and parts that do not go together."""

import numpy as np
import pytest

from bigjax import schema
from bigjax.config import DataConfig
from bigjax.data import batches
from bigjax.data.core import everything
from bigjax.data.load import load
from bigjax.errors import ConfigError


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))


@pytest.fixture
def parts(tmp_path):
    """Two corpora of one letter each: some 3200 and 1600 bytes, in windows of 16."""
    found = {}
    for letter, size in (('a', 4000), ('b', 2000)):
        (tmp_path / f'{letter}.txt').write_text(letter * size)
        splits = {'val': 0.1, 'test': 0.1}
        path = str(tmp_path / f'{letter}.txt')
        found[letter] = {'name': 'text', 'path': path, 'sequence_length': 16, 'splits': splits}
    return found


def loaded(parts, **options):
    values = {'name': 'mixture', 'parts': parts, **options}
    return load(schema.build(DataConfig, values, 'config.data'))


def shares(rows):
    letters = rows['targets'][:, 0]
    return {letter: int((letters == ord(letter)).sum()) for letter in 'ab'}


@pytest.mark.parametrize('share', [0.05, 0.5, 0.95])
def test_rows_are_drawn_by_weight_and_none_is_left_out(parts, share):
    source = loaded(parts, weights={'a': share, 'b': 1 - share}).sources['train']
    own = {
        letter: len(load(schema.build(DataConfig, parts[letter])).sources['train'])
        for letter in 'ab'
    }
    assert shares(everything(source))['a'] == pytest.approx(share * len(source), abs=1)
    for letter, size in own.items():
        assert shares(everything(source))[letter] >= size
    assert any(shares(everything(source))[letter] == size for letter, size in own.items())
    drawn = [
        batches.train_batch(source, 0, step, 32, slice(0, 32)) for step in range(len(source) // 32)
    ]
    mean = np.mean([shares(batch)['a'] / 32 for batch in drawn])
    assert mean == pytest.approx(share, abs=0.02)


def test_without_weights_every_row_comes_once(parts):
    mixed = loaded(parts)
    for split, source in mixed.sources.items():
        alone = [load(schema.build(DataConfig, part)).sources[split] for part in parts.values()]
        assert len(source) == sum(map(len, alone))
        inputs = np.concatenate([everything(part)['inputs'] for part in alone])
        np.testing.assert_array_equal(everything(source)['inputs'], inputs)
    assert mixed.spec.vocab_size == 256
    assert mixed.tokenizer.vocab_size == 256


def test_rows_are_a_function_of_their_number(parts):
    source = loaded(parts, weights={'a': 1, 'b': 3}).sources['train']
    everything_at_once = everything(source)['inputs']
    some = np.random.default_rng(0).integers(len(source), size=50)
    np.testing.assert_array_equal(source[some]['inputs'], everything_at_once[some])


def test_parts_that_do_not_go_together(parts):
    longer = {**parts, 'b': {**parts['b'], 'sequence_length': 8}}
    with pytest.raises(ConfigError, match=r'config\.data\.parts\.b: inputs is .*\(8,\)'):
        loaded(longer)
    other = {**parts, 'b': {**parts['b'], 'tokenizer': 'characters'}}
    with pytest.raises(
        ConfigError, match=r'config\.data\.parts\.b: vocab_size is 1; part a has 256'
    ):
        loaded(other)
    with pytest.raises(ConfigError, match='weights: expected one for each part'):
        loaded(parts, weights={'a': 1})
    with pytest.raises(ConfigError, match=r'parts\.a\.augment: set config\.data\.augment'):
        loaded({'a': {**parts['a'], 'augment': {'noise': {}}}})
    own = {**parts['a'], 'splits': {'train': 'train'}}
    with pytest.raises(ConfigError, match='no part has a split val'):
        loaded({'a': own})
    with pytest.raises(ConfigError, match='at least one data section'):
        loaded({})
