"""Rows decoded once, kept as memory-mapped .npy files that later runs share.

A folder of the cache is named by what it was made from. It is written under another name and
renamed when complete, so a run that is killed leaves nothing that a later one would trust. Of
several processes that want the same folder, one writes it while the others wait for its lock.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from bigjax.data.core import Batch
from bigjax.errors import EnvironmentProblem

Item = TypeVar('Item')
Result = TypeVar('Result')

LAYOUT = 1
"""Part of every key: raise it when what is written for the same key changes."""


def root(configured: str | None = None) -> Path:
    """The cache folder: as configured, or in the user's cache folder of the XDG standard."""
    if configured:
        return Path(configured).expanduser()
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'bigjax'


def rows(
    folder: Path, name: str, key: Mapping[str, Any], chunks: Callable[[], Iterable[Batch]]
) -> Batch:
    """Memory-mapped arrays of all the rows that `chunks()` yields, batch after batch.

    Written at the first call with this `name` and `key` (plain values: all that the rows depend
    on), read at every later one. Raises: EnvironmentProblem if the cache cannot be written.
    """
    digest = hashlib.sha256(json.dumps([LAYOUT, key], sort_keys=True).encode()).hexdigest()
    final = folder / f'{name}-{digest[:16]}'
    try:
        if not final.is_dir():
            with locked(_beside(final, 'lock')):
                if not final.is_dir():  # another process may have just written it
                    _write_folder(final, key, chunks)
        return {path.stem: np.load(path, mmap_mode='r') for path in final.glob('*.npy')}
    except OSError as error:
        raise EnvironmentProblem(
            f'cache {final}: {error.strerror or error}; free disk space, or set cache_dir to a '
            f'folder that can be written'
        ) from error


def _write_folder(final: Path, key: Mapping, chunks: Callable[[], Iterable[Batch]]) -> None:
    partial = _beside(final, 'partial')
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed: we hold its lock
    partial.mkdir()
    try:
        _write_rows(partial, chunks())
        (partial / 'key.json').write_text(json.dumps(key, indent=2))
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _beside(final: Path, kind: str) -> Path:
    return final.with_name(f'{final.name}.{kind}')


def _write_rows(folder: Path, chunks: Iterable[Batch]) -> None:
    """Written as ordinary files: a full disk is then an error, where a memory map would crash."""
    files: dict[str, BinaryIO] = {}
    count = 0
    chunk: Batch = {}
    with ExitStack() as stack:
        for chunk in chunks:
            for name, array in chunk.items():
                if name not in files:
                    files[name] = stack.enter_context((folder / f'{name}.npy').open('wb'))
                    _write_header(files[name], array, 0)
                files[name].write(np.ascontiguousarray(array).data)
            count += len(next(iter(chunk.values())))
        for name, file in files.items():
            file.seek(0)
            _write_header(file, chunk[name], count)
            file.flush()
            os.fsync(file.fileno())


def _write_header(file: BinaryIO, array: np.ndarray, count: int) -> None:
    """NumPy pads the header so that its length does not depend on the number of rows."""
    header = {'descr': array.dtype.str, 'fortran_order': False, 'shape': (count, *array.shape[1:])}
    np.lib.format.write_array_header_1_0(file, header)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process or thread at a time; the system frees the lock of a process that dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def parallel(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`map` in order, in as many threads as there are cores, only a little ahead of its reader."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
