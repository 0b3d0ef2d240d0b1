"""Where the time of the loop goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bigjax import chips

Reading = tuple[float, float]
"""Seconds that the clock ran, and that data was waited for."""


@dataclass(frozen=True)
class Work:
    """Of one step: rows, tokens (None if there are none) and FLOPs of the model, over all `devices`
    of a `kind` as JAX names it."""

    examples: int
    tokens: int | None
    flops: int
    kind: str
    devices: int


class Clock:
    """Seconds a step, without evaluation and saving, and what was done in them.

    started: when the attempt began, by `time.perf_counter`; goodput counts from there.
    """

    def __init__(self, work: Work, started: float) -> None:
        self.work, self.started = work, started
        self.step: int | None = None
        self.idle = self.waited = self.stepping = 0.0
        self.noted = self.lapped = self._reading()

    def restart(self, step: int) -> None:
        """Whatever was measured before belongs to no step."""
        self.step, self.noted, self.lapped = step, self._reading(), self._reading()

    def steps(self) -> dict[str, float]:
        """Of the steps since the last call: seconds, and those of them spent waiting for data."""
        before, self.noted = self.noted, self._reading()
        seconds, waited = _since(before, self.noted)
        return {'seconds': seconds, 'data_wait_seconds': waited}

    @contextmanager
    def paused(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.idle += time.perf_counter() - started

    @contextmanager
    def waiting(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - started

    def lap(self, step: int) -> dict[str, float]:
        """Since the last lap; nothing at the first step, which compiles.

        goodput: the part of the attempt's time so far that went into steps. mfu: of known chips.
        """
        if self.step is None or step <= self.step:
            self.step, self.lapped = step, self._reading()
            return {}
        steps, work, before = step - self.step, self.work, self.lapped
        self.step, self.lapped = step, self._reading()
        stepping, waited = _since(before, self.lapped)
        self.stepping += stepping
        seconds = stepping / steps
        timing = {
            'step_seconds': seconds,
            'data_wait_seconds': waited / steps,
            'examples_per_second': work.examples / seconds,
            'flops_per_second': work.flops / seconds,
            'goodput': self.stepping / (time.perf_counter() - self.started),
        }
        if work.tokens is not None:
            timing['tokens_per_second'] = work.tokens / seconds
        if (mfu := chips.mfu(work.flops, seconds, work.kind, work.devices)) is not None:
            timing['mfu'] = mfu
        return timing

    def _reading(self) -> Reading:
        return time.perf_counter() - self.idle, self.waited


def _since(before: Reading, after: Reading) -> Reading:
    return after[0] - before[0], after[1] - before[1]
