"""Ends a run that makes no progress, with the stack of every thread."""

import faulthandler
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from bigjax.sharding import hosts

Beat = Callable[[int, str], None]


@contextmanager
def watchdog(seconds: float, workdir: Path) -> Iterator[Beat]:
    """Yields `beat(step, doing)`, to be called whenever something else begins.

    If nothing does for `seconds`, every process writes its stacks into `workdir/stacks-<i>.txt`,
    and all end with exit code 1 and a line that names the one that is behind. What is begun with
    `doing=''` may take any time.
    """
    latest = [(time.monotonic(), 0, '')]
    ended = threading.Event()

    def beat(step: int, doing: str) -> None:
        latest[0] = (time.monotonic(), step, doing)

    def watch() -> None:
        while not ended.wait(min(1.0, seconds / 4)):
            since, step, doing = latest[0]
            if doing and time.monotonic() - since > seconds:
                with (workdir / f'stacks-{jax.process_index()}.txt').open('w') as file:
                    faulthandler.dump_traceback(file)
                hosts.end_late(step, doing, seconds, f'stacks in {workdir}/stacks-*.txt')

    thread = threading.Thread(target=watch, daemon=True, name='watchdog')
    thread.start()
    try:
        yield beat
    finally:
        ended.set()
        thread.join()
