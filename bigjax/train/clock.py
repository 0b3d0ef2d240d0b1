"""Where the time of the loop goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds a step, without evaluation and saving."""

    def __init__(self) -> None:
        self.step: int | None = None
        self.idle = self.waited = 0.0

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

    def lap(self, step: int, batch_size: int, tokens: int | None) -> dict[str, float]:
        """Throughput since the last lap; nothing at the first step, which compiles."""
        if self.step is None or step <= self.step:
            self.restart(step)
            return {}
        steps = step - self.step
        seconds = (time.perf_counter() - self.since - self.idle) / steps
        timing = {
            'step_seconds': seconds,
            'data_wait_seconds': self.waited / steps,
            'examples_per_second': batch_size / seconds,
        }
        if tokens is not None:
            timing['tokens_per_second'] = batch_size * tokens / seconds
        self.restart(step)
        return timing
