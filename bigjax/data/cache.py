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

from bigjax import seals
from bigjax.data.core import Batch
from bigjax.errors import DataError, EnvironmentProblem

LAYOUT = 3
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
        arrays = unsealed(final / 'arrays.json')
        for name, kind in arrays.items():
            check(final / name, kind.pop('stamp'))
        return {name: np.memmap(final / name, mode='r', **kind) for name, kind in arrays.items()}
    except OSError as error:
        raise EnvironmentProblem(
            f'cache {final}: {error.strerror or error}; free disk space, or set cache_dir to a '
            f'folder that can be written'
        ) from error


def stamp(path: Path) -> dict[str, Any]:
    """What `check` compares a file with."""
    stat = path.stat()
    return {'size': stat.st_size, 'mtime_ns': stat.st_mtime_ns, 'sha256': _digest(path)}


def check(path: Path, expected: Mapping[str, Any]) -> None:
    """Reads a file that was touched since its stamp. Raises: DataError if it is not the same."""
    if not path.is_file():
        raise DataError(f'{path} is missing; {cure(path.parent)}')
    stat = path.stat()
    if stat.st_size != expected['size']:
        raise DataError(
            f'{path} is damaged: expected {expected["size"]} bytes, got {stat.st_size}; '
            + cure(path.parent)
        )
    if stat.st_mtime_ns != expected['mtime_ns'] and _digest(path) != expected['sha256']:
        raise DataError(
            f'{path} is damaged: expected sha256 {expected["sha256"]}, got {_digest(path)}; '
            + cure(path.parent)
        )


def unsealed(path: Path) -> dict[str, Any]:
    """Raises: DataError for a file that does not say what was written."""
    try:
        return seals.unseal(path.read_bytes())
    except ValueError as error:
        raise DataError(f'{path} is damaged: {error}; {cure(path.parent)}') from None


def cure(folder: Path) -> str:
    """How to mend it."""
    return f'delete the folder {folder}: the next run makes it again'


def _digest(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _write(final: Path, decode: Callable[[Sequence], Batch], items: Sequence) -> None:
    """Written as ordinary files: a full disk is then an error, where a memory map would crash."""
    partial = final.with_name(f'{final.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed: we hold its lock
    partial.mkdir()
    try:
        count = 0
        for batch in _decoded(decode, items):
            for name, array in batch.items():
                with (partial / name).open('ab') as file:
                    array.tofile(file)
            count += len(array)
            arrays: dict[str, dict[str, Any]] = {
                name: {'dtype': array.dtype.str, 'shape': (count, *array.shape[1:])}
                for name, array in batch.items()
            }
        for name, kind in arrays.items():
            kind['stamp'] = stamp(partial / name)
        (partial / 'arrays.json').write_bytes(seals.seal(arrays))
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
