"""Batches as a pure function of (seed, step): no iterator, no state, the same on any mesh.

Training reads an endless stream of epochs, each a fresh permutation; step s takes rows
`[s * batch_size, (s + 1) * batch_size)` of it, so a batch may span two epochs and no row is
dropped. Each process reads only its own part of the batch.
"""

from collections.abc import Callable, Generator
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import jax
import numpy as np

from bigjax.data.core import Batch, Source
from bigjax.errors import PeerLost, one_line
from bigjax.sharding.mesh import process_rows

T = TypeVar('T')
Rows = slice | np.ndarray
"""Of a global batch, as `sharding.mesh.process_rows` gives them."""


def train_indices(num_rows: int, seed: int, start: int, count: int) -> np.ndarray:
    """Row numbers [count] at positions `start, start + 1, ...` of the endless shuffled stream."""
    epoch, offset = divmod(start, num_rows)
    pieces = [_permutation(num_rows, seed, epoch)[offset : offset + count]]
    missing = count - len(pieces[0])
    while missing > 0:
        epoch += 1
        pieces.append(_permutation(num_rows, seed, epoch)[:missing])
        missing -= len(pieces[-1])
    return np.concatenate(pieces)


@lru_cache(maxsize=4)
def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch. Philox is counter-based: distinct keys give independent streams."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    return rng.permutation(num_rows)


def train_batch(source: Source, seed: int, step: int, batch_size: int, rows: Rows) -> Batch:
    """This process's `rows` of the global batch of `step`, every weight 1."""
    indices = train_indices(len(source), seed, step * batch_size, batch_size)[rows]
    return _weighted(source[indices], len(indices))


def eval_batch(source: Source, index: int, batch_size: int, rows: Rows) -> Batch:
    """This process's `rows` of evaluation batch `index`, padded past the end with weight 0."""
    positions = index * batch_size + np.arange(batch_size)[rows]
    real = positions < len(source)
    batch = _weighted(source[np.where(real, positions, 0)], len(positions))
    mask = real.reshape((-1,) + (1,) * (batch['weights'].ndim - 1))
    return {**batch, 'weights': batch['weights'] * mask}


def num_eval_batches(source: Source, batch_size: int) -> int:
    """How many batches cover every row once."""
    return -(-len(source) // batch_size)


def _weighted(batch: Batch, count: int) -> Batch:
    if 'weights' in batch:
        return batch
    return {**batch, 'weights': np.ones(count, np.float32)}


def prefetched(
    make: Callable[[int], T], start: int, stop: int, depth: int
) -> Generator[T, None, None]:
    """`make(start), ..., make(stop - 1)` in order, each made in a thread up to `depth` ahead.

    An exception in `make` is raised where its result is asked for. Raises: PeerLost where a process
    that reads for it died.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix='data') as pool:
        waiting = [pool.submit(make, index) for index in range(start, min(start + depth, stop))]
        for index in range(start, stop):
            ready = waiting.pop(0)
            if index + depth < stop:
                waiting.append(pool.submit(make, index + depth))
            try:
                made = ready.result()
            except (BrokenExecutor, EOFError, ConnectionError) as error:
                raise PeerLost(
                    f'a process that reads data died over batch {index + 1} '
                    f'({type(error).__name__}: {one_line(error)}); see whether memory ran out'
                ) from error
            yield made


def to_device(batch: Batch, sharding: jax.sharding.NamedSharding, batch_size: int) -> Batch:
    """This process's rows into global arrays of `batch_size` rows, sharded along the batch axis."""
    if jax.process_count() == 1:  # its rows are all rows: one call for all leaves is faster
        return jax.device_put(batch, sharding)
    rows = process_rows(sharding, batch_size)

    def place(leaf: np.ndarray) -> jax.Array:
        def on_device(index: Any) -> np.ndarray:
            here = np.arange(batch_size)[index[0]]
            return leaf[np.searchsorted(rows, here)][:, *index[1:]]

        return jax.make_array_from_callback((batch_size, *leaf.shape[1:]), sharding, on_device)

    return jax.tree.map(place, batch)
