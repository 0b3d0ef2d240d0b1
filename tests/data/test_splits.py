"""Splits: by name, by fraction, by fold; disjoint, stratified, and refused where they leak."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from bigjax import schema
from bigjax.config import DataConfig
from bigjax.data.core import ArraySource, Dataset, everything
from bigjax.data.splits import split
from bigjax.errors import ConfigError, DataError

label_lists = st.lists(st.integers(0, 3), min_size=30, max_size=200)


def dataset(labels=None, **sizes):
    """Rows that are their own index; `labels` are those of train."""
    sources = {name: ArraySource({'row': np.arange(size)}) for name, size in sizes.items()}
    by_row = None if labels is None else lambda source: np.asarray(labels)[read(source)]
    return Dataset(sources, prepare=None, labels=by_row)


def read(source):
    return everything(source)['row']


def rows_of(data, **config):
    """The row numbers of every split."""
    built = schema.build(DataConfig, {'name': 'mine', **config}, 'config.data')
    return {name: read(source) for name, source in split(data, built).items()}


def assert_disjoint(rows, total=None):
    together = np.concatenate(list(rows.values()))
    assert len(np.unique(together)) == len(together)
    if total is not None:
        assert len(together) == total


def shares(labels, rows):
    return np.bincount(np.asarray(labels)[rows], minlength=4)


def test_a_data_set_keeps_its_own_splits():
    rows = rows_of(dataset(train=50, val=20, test=10))
    assert {name: list(part) for name, part in rows.items()} == {
        'train': list(range(50)),
        'val': list(range(20)),
        'test': list(range(10)),
    }
    rows = rows_of(dataset(train=50, validation=20))
    assert {name: len(part) for name, part in rows.items()} == {'train': 50, 'val': 20}


def test_train_alone_is_cut_in_three_and_val_is_carved_where_it_is_absent():
    rows = rows_of(dataset(train=200))
    assert {name: len(part) for name, part in rows.items()} == {
        'train': 160,
        'val': 20,
        'test': 20,
    }
    assert_disjoint(rows, total=200)
    assert not np.array_equal(rows['test'], np.arange(20))

    rows = rows_of(dataset(train=200, test=7))
    assert {name: len(part) for name, part in rows.items()} == {'train': 180, 'val': 20, 'test': 7}
    assert_disjoint({name: rows[name] for name in ('train', 'val')}, total=200)


@given(label_lists, st.integers(0, 5))
def test_fractions_are_disjoint_exact_and_stratified(labels, seed):
    splits = {'train': 0.5, 'val': 0.2, 'test': 0.1}
    rows = rows_of(dataset(labels, train=len(labels)), splits=splits, split_seed=seed)
    assert_disjoint(rows)
    for name, fraction in splits.items():
        assert abs(len(rows[name]) - fraction * len(labels)) <= 1
        expected = fraction * shares(labels, slice(None))
        assert (abs(shares(labels, rows[name]) - expected) <= 3).all()


def test_the_first_fraction_drawn_is_within_one_row_of_every_class():
    labels = np.repeat([0, 1, 2, 3], [500, 300, 43, 7])
    rows = rows_of(dataset(labels, train=850), splits={'test': 0.13})
    assert (abs(shares(labels, rows['test']) - 0.13 * shares(labels, slice(None))) <= 1).all()


def test_the_split_seed_decides_and_nothing_else():
    def test_rows(seed):
        return list(rows_of(dataset(train=100), splits={'test': 0.3}, split_seed=seed)['test'])

    assert test_rows(1) == test_rows(1)
    assert test_rows(1) != test_rows(2)


def test_train_left_out_takes_the_rest():
    rows = rows_of(dataset(train=100, test=5), splits={'val': 0.25, 'test': 'test'})
    assert {name: len(part) for name, part in rows.items()} == {'train': 75, 'val': 25, 'test': 5}
    assert_disjoint({name: rows[name] for name in ('train', 'val')}, total=100)


def test_names_with_slices_of_rows_and_percent():
    data = dataset(train=200, test=30)
    splits = {'train': 'train[:80%]', 'val': 'train[-10%:]', 'test': 'test[5:-5]'}
    rows = rows_of(data, splits=splits)
    np.testing.assert_array_equal(rows['train'], np.arange(160))
    np.testing.assert_array_equal(rows['val'], np.arange(180, 200))
    np.testing.assert_array_equal(rows['test'], np.arange(5, 25))
    rows = rows_of(data, splits={'train': 'train[50:150]', 'val': 'train[-50:]'})
    np.testing.assert_array_equal(rows['train'], np.arange(50, 150))
    np.testing.assert_array_equal(rows['val'], np.arange(150, 200))


@given(st.integers(1, 300), st.integers(1, 99))
def test_slices_that_meet_at_a_percentage_neither_overlap_nor_leave_a_gap(size, percent):
    splits = {'train': f'train[:{percent}%]', 'val': f'train[{percent}%:]'}
    try:
        rows = rows_of(dataset(train=size), splits=splits)
    except DataError:  # so few rows that one of them is empty
        assert round(size * percent / 100) in (0, size)
    else:
        assert_disjoint(rows, total=size)


@given(label_lists, st.integers(2, 7))
def test_folds_cover_the_pool_once_and_are_balanced_like_those_of_scikit_learn(labels, folds):
    tests = []
    for fold in range(folds):
        rows = rows_of(dataset(labels, train=len(labels)), folds=folds, fold=fold)
        assert set(rows) == {'train', 'test'}
        assert_disjoint(rows, total=len(labels))
        tests.append(rows['test'])
    assert sorted(np.concatenate(tests)) == list(range(len(labels)))
    ours = np.array([shares(labels, rows) for rows in tests])
    assert (ours.max(axis=0) - ours.min(axis=0) <= 1).all()
    if shares(labels, slice(None))[np.unique(labels)].min() >= folds:
        theirs = [shares(labels, rows) for _, rows in StratifiedKFold(folds).split(labels, labels)]
        np.testing.assert_array_equal(np.sort(ours, axis=0), np.sort(theirs, axis=0))


def test_val_is_drawn_from_what_the_fold_leaves():
    rows = rows_of(dataset(train=100), folds=5, fold=0, splits={'val': 0.25})
    assert {name: len(part) for name, part in rows.items()} == {'train': 60, 'val': 20, 'test': 20}
    assert_disjoint(rows, total=100)


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'splits': {'tests': 0.1}}, "unknown key .*splits.tests: did you mean 'test'"),
        ({'splits': {'train': 0.8, 'val': 0.3}}, 'fractions sum to 1.1'),
        ({'splits': {'val': 1.5}}, r'splits.val: a fraction in \(0, 1\], got 1.5'),
        ({'splits': {'val': 0.0}}, r'splits.val: a fraction in \(0, 1\], got 0.0'),
        ({'splits': {'train': 'trian'}}, "splits.train: no split 'trian'; did you mean 'train'"),
        ({'splits': {'train': 'train[:x]'}}, "rows or a percentage, got 'x'"),
        ({'splits': {'train': 'train[5]'}}, r"expected 'name' or 'name\[a:b\]'"),
        ({'splits': {'train': 'train[:101]'}}, 'beyond the 100 records'),
        ({'splits': {'train': 'train[:-120%]'}}, 'beyond the 100 records'),
        (
            {'splits': {'train': 'train[:60%]', 'val': 'train[50%:]'}},
            r"train and val share 10 rows of 'train' \(the first is 50\)",
        ),
        ({'splits': {'train': 'train', 'test': 'train[:5]'}}, 'train and test share 5 rows'),
        ({'splits': {'train': 'train[:50%]', 'val': 0.1}}, 'give slices for every split'),
        ({'splits': {'val': 'train[:10]'}}, 'give slices for every split, or for none'),
        ({'splits': {'test': 0.1}, 'folds': 5, 'fold': 0}, 'both choose the test split'),
        ({'splits': {'test': 'test'}, 'folds': 5, 'fold': 0}, 'both choose the test split'),
        ({'folds': 101, 'fold': 0}, 'folds=101 exceeds the 100 records'),
    ],
)
def test_what_cannot_be_meant_is_refused(config, message):
    with pytest.raises(ConfigError, match=message) as caught:
        rows_of(dataset(train=100, test=20), **config)
    assert '\n' not in str(caught.value)


def test_splits_without_rows_are_refused():
    with pytest.raises(DataError, match="no records in its split 'train'"):
        rows_of(dataset(train=0))
    with pytest.raises(DataError, match="has no split 'train'; it has test"):
        rows_of(dataset(test=5))
    with pytest.raises(DataError, match="'test' of data 'mine' gets no rows: train has 3 records"):
        rows_of(dataset(train=3))
    with pytest.raises(DataError, match="'val' of data 'mine' gets no rows"):
        rows_of(dataset(train=10), splits={'train': 'train[:5]', 'val': 'train[7:7]'})


def test_rows_whose_order_matters_are_cut_in_order():
    ordered = replace(dataset(train=100), ordered=True)
    rows = rows_of(ordered, splits={'val': 0.2, 'test': 0.1})
    assert {name: list(part) for name, part in rows.items()} == {
        'train': list(range(70)),
        'val': list(range(70, 90)),
        'test': list(range(90, 100)),
    }
    rows = rows_of(ordered, folds=5, fold=1)
    assert list(rows['test']) == list(range(20, 40))
    assert list(rows['train']) == [*range(20), *range(40, 100)]


def test_a_data_set_has_fractions_of_its_own():
    rows = rows_of(replace(dataset(train=100), fractions={'val': 0.3, 'test': 0.2}))
    assert {name: len(part) for name, part in rows.items()} == {'train': 50, 'val': 30, 'test': 20}
