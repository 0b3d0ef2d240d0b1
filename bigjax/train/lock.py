"""One job a run folder: `lock` in it names the process that writes there, and its time is fresh.

The file stays, empty while nobody has it: to delete it would let two others take it at once.
"""

import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from bigjax.errors import EXIT_FAILED, EnvironmentProblem
from bigjax.sharding import hosts
from bigjax.train.folder import writing

NAME = 'lock'

BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
"""A job on another host that does not touch its lock for so long is taken to be gone."""


@contextmanager
def held(workdir: Path) -> Iterator[str | None]:
    """Holds the lock of `workdir`, which is made; process 0 does so for all. Gives a note for the
    log if a dead job's lock was taken over.

    Raises: EnvironmentProblem naming the host and process that holds it, or if there is no writing.
    """
    path = workdir / NAME
    owner, note = hosts.first('lock', partial(_take, path), 60 + STALE_SECONDS)
    if not hosts.leads():
        yield None
        return
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, owner, ended), daemon=True)
    beat.start()
    try:
        yield note
    finally:
        ended.set()
        beat.join()
        with suppress(OSError):
            os.truncate(path, 0)


def _take(path: Path) -> tuple[dict[str, Any], str | None]:
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('a+') as file:
            with suppress(OSError):  # a file system without them; then two at once may slip in
                fcntl.flock(file, fcntl.LOCK_EX)
            before, mine = _owner(path), _process(os.getpid())
            if before is not None and _lives(path, before):
                raise EnvironmentProblem(
                    f'{path.parent} is in use by process {before["pid"]} on {before["host"]}; stop '
                    'that job first, or choose another --workdir'
                )
            file.truncate(0)
            file.write(json.dumps(mine))
            file.flush()
            os.fsync(file.fileno())
    if before is None:
        return mine, None
    return mine, f'took {path} over from process {before["pid"]} on {before["host"]}, now gone'


def _owner(path: Path) -> dict[str, Any] | None:
    try:
        owner = json.loads(path.read_bytes())
    except ValueError:  # nobody's, or torn by a crash
        return None
    whole = isinstance(owner, dict) and owner.keys() >= _process(os.getpid()).keys()
    return owner if whole else None


def _process(pid: int) -> dict[str, Any]:
    """A process as no other one was or will be: where it runs, and when it started."""
    stat = _text(f'/proc/{pid}/stat').rpartition(')')[2].split()
    started = stat[19] if stat and stat[0] not in 'ZX' else None  # dead, if not yet buried
    kernel = [_text('/proc/sys/kernel/random/boot_id').strip()]
    with suppress(OSError):
        kernel.append(os.readlink('/proc/self/ns/pid'))  # a container counts its own
    host = socket.gethostname()
    return {'host': host, 'kernel': kernel, 'pid': pid, 'started': started}


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ''


def is_held(workdir: Path) -> bool:
    """Whether a job is at work there, at a glance: one on another host if it beat of late."""
    path = workdir / NAME
    owner = _owner(path) if path.is_file() else None
    if owner is None:
        return False
    runs = _runs_here(owner)
    return time.time() - _touched(path) / 1e9 < STALE_SECONDS if runs is None else runs


def _runs_here(owner: dict[str, Any]) -> bool | None:
    """Whether that process runs; None if it is not of this machine."""
    here = _process(owner['pid'])
    if (owner['host'], owner['kernel']) != (here['host'], here['kernel']):
        return None
    try:
        os.kill(owner['pid'], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return owner == here


def _lives(path: Path, owner: dict[str, Any]) -> bool:
    """Here: whether it runs. Elsewhere: whether its lock's time moves; clocks are not compared."""
    runs = _runs_here(owner)
    if runs is not None:
        return runs
    first, until = _touched(path), time.monotonic() + STALE_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1.0, STALE_SECONDS / 4))
        if _touched(path) != first:
            return True
    return False


def _touched(path: Path) -> int:
    with path.open() as file:  # a network file system looks again when a file is opened
        return os.fstat(file.fileno()).st_mtime_ns


def _beat(path: Path, owner: dict[str, Any], ended: threading.Event) -> None:
    """Touches the lock; ends the process if another took it, which thought this one dead."""
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):
            if _owner(path) == owner:
                os.utime(path)
                continue
            print(f'bigjax: another job took {path} over; this one ends', file=sys.stderr)
            sys.stderr.flush()
            os._exit(EXIT_FAILED)
