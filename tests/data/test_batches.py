"""Batches: the order is a function of (seed, step) alone, and no row is lost or counted twice."""

import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bigjax.data import batches
from bigjax.data.core import ArraySource, Subset, everything

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**63)


def numbered(num_rows):
    """A source whose inputs say which row they are."""
    return ArraySource({'inputs': np.arange(num_rows)})


def rows_read(num_rows, seed, steps, batch_size):
    return np.concatenate(
        [
            batches.train_batch(numbered(num_rows), seed, s, batch_size, slice(0, batch_size))[
                'inputs'
            ]
            for s in steps
        ]
    )


@given(sizes, seeds, st.integers(1, 100), st.integers(1, 4))
def test_each_epoch_reads_each_row_once_whatever_the_batch(num_rows, seed, batch_size, epochs):
    stream = rows_read(num_rows, seed, range(-(-epochs * num_rows // batch_size)), batch_size)
    for epoch in range(epochs):
        part = stream[epoch * num_rows : (epoch + 1) * num_rows]
        assert sorted(part) == list(range(num_rows))


@given(sizes, seeds, st.integers(0, 50), st.integers(1, 60))
def test_a_step_depends_on_nothing_before_it(num_rows, seed, step, batch_size):
    stream = rows_read(num_rows, seed, range(step + 1), batch_size)
    np.testing.assert_array_equal(
        rows_read(num_rows, seed, [step], batch_size), stream[-batch_size:]
    )


@given(sizes, seeds, st.integers(0, 20), st.integers(1, 8), st.integers(1, 8))
def test_the_parts_of_the_processes_are_the_batch(num_rows, seed, step, processes, per_process):
    batch_size = processes * per_process
    owned = np.random.default_rng(seed).permutation(batch_size).reshape(processes, per_process)
    parts = [
        batches.train_batch(numbered(num_rows), seed, step, batch_size, rows)['inputs']
        for rows in owned
    ]
    whole = rows_read(num_rows, seed, [step], batch_size)
    np.testing.assert_array_equal(np.concatenate(parts), whole[owned.ravel()])


def test_epochs_and_seeds_differ_and_shuffle():
    first, second = np.split(rows_read(1000, 3, range(20), 100), 2)
    other_seed = rows_read(1000, 4, range(10), 100)
    in_order = np.arange(1000)
    for a, b in [(first, second), (first, other_seed), (first, in_order), (second, other_seed)]:
        assert (a == b).sum() < 20  # one row in a thousand agrees by chance
    assert abs(np.corrcoef(first, in_order)[0, 1]) < 0.15


@given(sizes, st.integers(1, 16), st.integers(1, 4))
def test_evaluation_counts_every_row_once(num_rows, per_process, processes):
    source = ArraySource({'inputs': np.arange(num_rows), 'targets': 10 * np.arange(num_rows)})
    batch_size = per_process * processes
    counts = np.zeros(num_rows)
    for index in range(batches.num_eval_batches(source, batch_size)):
        for process in range(processes):
            rows = slice(process * per_process, (process + 1) * per_process)
            batch = batches.eval_batch(source, index, batch_size, rows)
            assert batch['weights'].shape == (per_process,)
            assert batch['weights'].dtype == np.float32
            np.testing.assert_array_equal(batch['targets'], 10 * batch['inputs'])
            np.add.at(counts, batch['inputs'], batch['weights'])
    np.testing.assert_array_equal(counts, 1)


def test_evaluation_keeps_the_weights_of_the_rows():
    weights = np.array([[1, 1], [1, 0], [1, 1]], np.float32)
    source = ArraySource({'inputs': np.zeros((3, 2)), 'weights': weights})
    batch = batches.eval_batch(source, 0, 4, slice(0, 4))
    np.testing.assert_array_equal(batch['weights'], [[1, 1], [1, 0], [1, 1], [0, 0]])


def test_training_weights_are_one_unless_the_rows_have_their_own():
    batch = batches.train_batch(numbered(5), 0, 0, 4, slice(0, 4))
    np.testing.assert_array_equal(batch['weights'], np.ones(4, np.float32))
    source = ArraySource({'inputs': np.zeros(5), 'weights': np.full(5, 0.5, np.float32)})
    assert (batches.train_batch(source, 0, 0, 4, slice(0, 4))['weights'] == 0.5).all()


def test_a_subset_reads_only_its_rows():
    source = Subset(numbered(100), np.array([5, 50, 7]))
    np.testing.assert_array_equal(everything(source)['inputs'], [5, 50, 7])
    batch = batches.train_batch(source, 0, 0, 3, slice(0, 3))
    assert sorted(batch['inputs']) == [5, 7, 50]


def test_prefetched_keeps_the_order_and_stays_ahead_by_its_depth():
    made = []

    def make(index):
        time.sleep(0.002 if index % 2 else 0)
        made.append(index)
        return index

    items = batches.prefetched(make, 3, 20, depth=4)
    assert next(items) == 3
    time.sleep(0.05)
    assert made == [3, 4, 5, 6, 7]
    assert [*items] == list(range(4, 20))


def test_prefetched_makes_in_a_thread_and_ends_with_its_reader():
    threads = set()
    items = batches.prefetched(lambda _: threads.add(threading.current_thread()), 0, 9, depth=2)
    next(items)
    items.close()
    assert threading.current_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


def test_prefetched_raises_where_the_failed_item_is_asked_for():
    def make(index):
        if index == 2:
            raise ValueError('row 2 is broken')
        return index

    items = batches.prefetched(make, 0, 5, depth=3)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match='row 2 is broken'):
        next(items)


def test_to_device_shards_every_leaf_along_the_batch():
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec('data'))
    batch = {'inputs': {'x': np.arange(48.0).reshape(16, 3)}, 'weights': np.ones(16, np.float32)}
    placed = batches.to_device(batch, sharding, 16)
    assert placed['inputs']['x'].addressable_shards[3].data.shape == (2, 3)
    np.testing.assert_array_equal(placed['inputs']['x'].addressable_shards[3].data[0], [18, 19, 20])
    np.testing.assert_array_equal(placed['weights'], batch['weights'])
