"""Which bytes a checkpoint is: the size and SHA-256 of each of its files, in `manifest.json`.

Orbax does not checksum what it writes. The manifest is written last, once every process's part is
on disk, so a folder that holds one was whole; `fault` tells whether it still is.
"""

import errno
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import bigjax
from bigjax import seals
from bigjax.errors import CheckpointError

NAME = 'manifest.json'
FORMAT = 1

PASSING = {
    errno.EAGAIN, errno.EBUSY, errno.ECONNRESET, errno.EINTR, errno.EIO, errno.ENOTCONN,
    errno.ESTALE, errno.ETIMEDOUT,
}  # fmt: skip
"""What a network file system may answer now, and not a moment later."""
WAITS = (0.1, 1.0, 5.0)
"""Seconds before each new try."""

Result = TypeVar('Result')


def write(folder: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Writes the manifest of `folder`; its files are on disk, and not in a cache, after that."""
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    body = {
        'format': FORMAT,
        'bigjax': bigjax.__version__,
        'step': step,
        'metrics': dict(metrics),
        'files': {
            str(path.relative_to(folder)): [path.stat().st_size, digest(path, flush=True)]
            for path in files
        },
    }
    with (folder / NAME).open('wb') as file:
        file.write(seals.seal(body))
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`.

    Raises: CheckpointError for one of a later format; OSError; ValueError for a damaged one.
    """
    body = seals.unseal(patiently((folder / NAME).read_bytes))  # as every format has a seal
    if body['format'] > FORMAT:
        raise CheckpointError(
            f'{folder / NAME} has format {body["format"]}, of bigjax {body["bigjax"]}; expected at '
            f'most {FORMAT}; install that version, or a later one'
        )
    return body


def fault(folder: Path) -> str | None:
    """Why the checkpoint in `folder` is not as it was written, or None if it is; reads all of it.

    Raises: CheckpointError for a manifest of a later format.
    """
    try:
        files = read(folder)['files']
    except FileNotFoundError:
        return f'{folder / NAME} is missing'
    except (OSError, ValueError) as error:
        return f'{folder / NAME} is damaged: {error}'
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: _fault(folder / name, *files[name]), files)
        return next(filter(None, found), None)


def _fault(path: Path, size: int, sha256: str) -> str | None:
    try:
        here = patiently(path.stat).st_size
        if here != size:
            return f'{path} has {here} bytes, of {size}'
        return None if digest(path) == sha256 else f'{path} has other bytes than were written'
    except FileNotFoundError:
        return f'{path} is missing'
    except OSError as error:
        return f'{path} cannot be read: {error.strerror}'


def digest(path: Path, flush: bool = False) -> str:
    """The SHA-256 of a file, in hexadecimal. flush: and see that it is on disk. Raises: OSError."""

    def hashed() -> str:
        with path.open('rb') as file:
            if flush:
                os.fsync(file.fileno())
            return hashlib.file_digest(file, 'sha256').hexdigest()

    return patiently(hashed)


def patiently(call: Callable[[], Result]) -> Result:
    """What `call` returns, tried again after an error that may pass. Raises: OSError."""
    for wait in WAITS:
        try:
            return call()
        except OSError as error:
            if not may_pass(error):
                raise
            time.sleep(wait)
    return call()


def may_pass(error: Exception) -> bool:
    """Whether an error is one of PASSING; TensorStore gives them as text."""
    if isinstance(error, OSError):
        return error.errno in PASSING
    return any(os.strerror(number) in str(error) for number in PASSING)
