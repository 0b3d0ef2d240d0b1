"""Steps timed in processes of their own: each side has its memory, environment and packages.

A worker reads a JSON specification, answers with facts once it is warm, then reads numbers of steps
and answers each with the seconds that every step took. The standard library only: the interpreter
of a peer may have nothing else of ours.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]

Step = Callable[[], Callable[[], object]]
"""Dispatches a step; what it returns waits until that step is done."""


class WorkerError(Exception):
    """A worker could not go on; the message says why, in a line."""


class Worker:
    """The parent's end. facts: what the worker told when it was warm."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str], spec: Mapping[str, Any]):
        self.process, self.errors = process, errors
        self.facts = self._ask(spec)

    def steps(self, count: int) -> list[float]:
        """Seconds of each of `count` steps. Raises: WorkerError."""
        answer = self._ask(count)
        self.facts |= answer['facts']
        return answer['seconds']

    def _ask(self, question: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps(question), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ''
        if not answer:  # it was killed, or never came to `serve`
            code = self.process.wait()
            self.errors.seek(0)
            lines = [line for line in self.errors.read().splitlines() if line.strip()]
            raise WorkerError(lines[-1] if lines else f'ended with exit code {code}')
        found = json.loads(answer)
        if 'error' in found:
            raise WorkerError(found['error'])
        return found


@contextmanager
def opened(
    module: str,
    spec: Mapping[str, Any],
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Worker]:
    """`python -m module`, warm; it ends with the context. Raises: WorkerError."""
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    with tempfile.TemporaryFile('w+') as errors:
        process = subprocess.Popen(
            [python, '-m', module],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stderr=errors,
            text=True,
            **pipes,
        )
        with process:
            try:
                yield Worker(process, errors, spec)
            finally:
                process.kill()


def serve(start: Callable[[Any], tuple[Callable[[], dict[str, Any]], Step]]) -> None:
    """The worker's end. start: the specification -> (facts as they now are, the step)."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        spec = json.loads(sys.stdin.readline())
        facts, step = start(spec)
        started = time.perf_counter()
        timed(step, spec['warmup'])
        answer(facts() | {'warmup_seconds': time.perf_counter() - started})
        for line in sys.stdin:
            answer({'seconds': timed(step, int(line)), 'facts': facts()})
    except Exception as error:  # out of memory, too, is an answer
        answer({'error': f'{type(error).__name__}: {error}'.splitlines()[0]})


def timed(step: Step, count: int) -> list[float]:
    """Seconds from the end of each step to the end of the next, which is dispatched before."""
    waiting, ends = step(), []
    for _ in range(count + 1):
        waiting, wait = step(), waiting
        wait()
        ends.append(time.perf_counter())
    waiting()
    return [after - before for before, after in pairwise(ends)]
