"""Requests to stop: a SIGTERM or Ctrl-C, heeded at the same step by all processes."""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils

_calls = itertools.count(1)


@contextmanager
def stop_requests() -> Iterator[Callable[[], str | None]]:
    """A function for the loop to call once a step: the name of the signal to stop for, if any.

    Of several processes, any may get the signal; all hear of it at the same call.
    """
    several = jax.process_count() > 1
    asked: list[str] = []
    before: dict[int, Any] = {}

    def ask(number: int, _: Any) -> None:
        signal.signal(number, before[number])  # a second one is not held back
        asked.append(signal.Signals(number).name)
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    def heard() -> str | None:
        """JAX's service catches SIGTERM, and sets the call at which to stop: past everybody's
        latest, not counted in steps, which start anew in a second run."""
        if several:
            return (
                'SIGTERM' if multihost_utils.reached_preemption_sync_point(next(_calls)) else None
            )
        return asked[0] if asked else None

    try:
        # a handler of ours for SIGTERM would unseat the service's
        for number in (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread: somebody else handles signals
        pass
    try:
        yield heard
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)
