"""Out of memory, told in one line: which arrays are the largest, and what makes them smaller."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bigjax.errors import EnvironmentProblem, one_line

SHOWN = 4
SAID = re.compile('RESOURCE_EXHAUSTED|out of memory', re.IGNORECASE)
"""By accelerators, and by CPUs."""


@contextmanager
def accounted(tree: Any = None) -> Iterator[None]:
    """The body's failure to get memory names the largest arrays of `tree`, or of all there are.

    tree: arrays or shapes with shardings. Raises: EnvironmentProblem.
    """
    try:
        yield
    except (RuntimeError, ValueError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not SAID.search(str(error)):
            raise
        raise EnvironmentProblem(
            f'out of memory: {one_line(error)[:200]}; largest on a device: {_largest(tree)}; use a '
            'smaller config.train.batch_size, more config.train.accumulation, config.mesh.fsdp or '
            'config.model.remat'
        ) from None


def _largest(tree: Any) -> str:
    import jax  # which takes a second, and `bigjax --help` has no use for

    from bigjax import trees

    leaves = jax.live_arrays() if tree is None else tree
    found = []
    for path, leaf in jax.tree.leaves_with_path(leaves):
        shape = leaf.sharding.shard_shape(leaf.shape)
        size = leaf.dtype.itemsize
        for length in shape:
            size *= length
        name = f'{trees.path_name(path)} ' if tree is not None else ''
        found.append((size, f'{name}{leaf.dtype}{list(shape)} {size / 1e9:,.3f} GB'))
    return ', '.join(text for _, text in sorted(found, reverse=True)[:SHOWN]) or 'none yet'
