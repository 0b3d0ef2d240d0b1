"""Where the time of the loop goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bigjax import chips


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

    def restart(self, step: int) -> None:
        self.step, self.since = step, time.perf_counter()
        self.idle = self.waited = 0.0

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
            self.restart(step)
            return {}
        now, steps, work = time.perf_counter(), step - self.step, self.work
        self.stepping += now - self.since - self.idle
        seconds = (now - self.since - self.idle) / steps
        timing = {
            'step_seconds': seconds,
            'data_wait_seconds': self.waited / steps,
            'examples_per_second': work.examples / seconds,
            'flops_per_second': work.flops / seconds,
            'goodput': self.stepping / (now - self.started),
        }
        if work.tokens is not None:
            timing['tokens_per_second'] = work.tokens / seconds
        if (mfu := chips.mfu(work.flops, seconds, work.kind, work.devices)) is not None:
            timing['mfu'] = mfu
        self.restart(step)
        return timing
