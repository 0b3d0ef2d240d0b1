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
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.data.core import Batch
from bigjax.errors import EnvironmentProblem

LAYOUT = 2
"""Part of every key: raise it when what is written for the same key changes."""

CHUNK = 64
"""Items that a thread decodes in one go."""


def rows(
    folder: str | None,
    name: str,
    key: Mapping[str, Any],
    decode: Callable[[Sequence], Batch],
    items: Sequence,
) -> Batch:
    """Memory-mapped arrays of the rows that `decode` makes of `items`, some of them at a time.

    Decoded, in threads, at the first call with this `name` and `key` (plain values: all that the
    rows depend on), read at every later one. folder: by default in the user's cache folder of the
    XDG standard. Raises: EnvironmentProblem if the cache cannot be written.
    """
    home = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    digest = hashlib.sha256(json.dumps([LAYOUT, key], sort_keys=True).encode()).hexdigest()
    final = (Path(folder).expanduser() if folder else home / 'bigjax') / f'{name}-{digest[:16]}'
    try:
        if not final.is_dir():
            final.parent.mkdir(parents=True, exist_ok=True)
            with final.with_name(f'{final.name}.lock').open('w') as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # the system frees it if we die
                if not final.is_dir():  # another process may have just written it
                    _write(final, decode, items)
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
