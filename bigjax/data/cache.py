"""Rows decoded once, kept as memory-mapped files that later runs share.

A folder of the cache is named by what it was made from. It is written under another name and
renamed when complete, so a run that is killed leaves nothing that a later one would trust. Of
several processes that want the same folder, one writes it while the others wait for its lock.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.data.core import Batch
from bigjax.errors import EnvironmentProblem

LAYOUT = 2
"""Part of every key: raise it when what is written for the same key changes."""

CHUNK = 64
"""Items that a thread decodes in one go."""


def root(configured: str | None = None) -> Path:
    """The cache folder: as configured, or in the user's cache folder of the XDG standard."""
    if configured:
        return Path(configured).expanduser()
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'bigjax'


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process or thread at a time; the system frees the lock of a process that dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def rows(
    folder: Path,
    name: str,
    key: Mapping[str, Any],
    decode: Callable[[Sequence], Batch],
    items: Callable[[], Sequence],
) -> Batch:
    """Memory-mapped arrays of the rows that `decode` makes of `items()`, some of them at a time.

    Decoded, in threads, at the first call with this `name` and `key` (plain values: all that the
    rows depend on), read at every later one. Raises: EnvironmentProblem if the cache cannot be
    written.
    """
    digest = hashlib.sha256(json.dumps([LAYOUT, key], sort_keys=True).encode()).hexdigest()
    final = folder / f'{name}-{digest[:16]}'
    try:
        if not final.is_dir():
            with locked(final.with_name(f'{final.name}.lock')):
                if not final.is_dir():  # another process may have just written it
                    _write(final, decode, items())
        arrays = json.loads((final / 'arrays.json').read_text())
        return {name: np.memmap(final / name, mode='r', **kind) for name, kind in arrays.items()}
    except OSError as error:
        raise EnvironmentProblem(
            f'cache {final}: {error.strerror or error}; free disk space, or set cache_dir to a '
            f'folder that can be written'
        ) from error


def _write(final: Path, decode: Callable[[Sequence], Batch], items: Sequence) -> None:
    """Written as ordinary files: a full disk is then an error, where a memory map would crash."""
    partial = final.with_name(f'{final.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed: we hold its lock
    partial.mkdir()
    try:
        count, arrays = 0, {}
        for batch in _decoded(decode, items):
            for name, array in batch.items():
                with (partial / name).open('ab') as file:
                    array.tofile(file)
            count += len(array)
            arrays = {
                name: {'dtype': array.dtype.str, 'shape': (count, *array.shape[1:])}
                for name, array in batch.items()
            }
        (partial / 'arrays.json').write_text(json.dumps(arrays))
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _decoded(decode: Callable[[Sequence], Batch], items: Sequence) -> Iterator[Batch]:
    """Batch after batch, in order, decoded only a little ahead of being written."""
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(chunks), 4 * workers):
            yield from pool.map(decode, chunks[start : start + 4 * workers])
