"""Requests to stop: a SIGTERM or Ctrl-C, heeded at the same step by all processes."""

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax
from jax.experimental import multihost_utils

from bigjax.errors import Preempted
from bigjax.sharding import hosts

_calls = itertools.count(1)


class Stop:
    """Call it where the run could stop: the name of the signal to stop for, if any.

    Of several processes, any may get the signal; all hear of it at the same call.

    holds: whether there is something to save first. Where there is not (before the first step, and
    after the last is saved), all processes end by themselves, whatever they are doing.
    """

    def __init__(self) -> None:
        self.holds = False
        self.asked: str | None = None

    def __call__(self) -> str | None:
        """JAX's service catches SIGTERM, and sets the call at which to stop: past everybody's
        latest, not counted in steps, which start anew in a second run."""
        several = jax.process_count() > 1
        if several and multihost_utils.reached_preemption_sync_point(next(_calls)):
            self.asked = 'SIGTERM'
            return self.asked
        return None if several and self.asked != 'SIGTERM' else self.asked


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Catches the signals as long as it is open."""
    several = jax.process_count() > 1
    stop = Stop()
    before: dict[int, Any] = {}

    def ask(number: int, _: Any) -> None:
        signal.signal(number, before[number])  # a second one is not held back
        if several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            stop.asked = signal.Signals(number).name

    def leave() -> None:
        """In a thread, for the handler only runs once the main one is back from a compiler."""
        asked = None
        while not ended.wait(0.5):
            with suppress(BlockingIOError):
                number = os.read(reads, 1)[0]
                asked = signal.Signals(number).name if number in before else asked
            if hosts.preempted():
                asked = 'SIGTERM'
            if asked is not None and not stop.holds:
                line = f'stopped by {asked} with nothing to save; the same command goes on'
                hosts.end_all(Preempted.exit_code, line)

    reads, writes = os.pipe()
    os.set_blocking(reads, False)
    os.set_blocking(writes, False)
    ended = threading.Event()
    try:
        # a handler of ours for SIGTERM would unseat the service's
        for number in (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, ask)
        old = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    except ValueError:  # not the main thread: somebody else handles signals
        pass
    thread = threading.Thread(target=leave, daemon=True, name='signals')
    thread.start()
    try:
        yield stop
    finally:
        if before:
            signal.set_wakeup_fd(old)
        for caught, handler in before.items():
            signal.signal(caught, handler)
        ended.set()
        thread.join()
        os.close(writes)
        os.close(reads)
