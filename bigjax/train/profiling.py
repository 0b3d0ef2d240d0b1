"""A trace of some steps, which xprof and TensorBoard open, and in words where their time went."""

import re
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bigjax.errors import ConfigError

NOTHING = range(0)
MODULE = 'jit_train_step'


def steps_of(text: str) -> range:
    """`10:13`: the three steps after the tenth. Raises: ConfigError."""
    match = re.fullmatch(r'(\d+):(\d+)', text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(f'--profile: expected START:STOP, such as 10:13, got {text!r}')
    return range(int(match[1]), int(match[2]))


def check_steps(steps: range, start: int, total: int) -> None:
    """Raises: ConfigError unless a run that goes on from step `start` takes those steps."""
    if steps and not start <= steps.start < steps.stop <= total:
        raise ConfigError(
            f'--profile: expected steps between {start} and {total}, which this run takes, got '
            f'{steps.start}:{steps.stop}'
        )


class Tracer(AbstractContextManager):
    """Writes the trace of `steps` (counted in steps that are done) into a folder."""

    def __init__(self, steps: range, folder: Path) -> None:
        self.steps, self.folder = steps, folder
        self.on = False

    def begin(self, step: int, state: Any) -> None:
        """Before the step after `step` is dispatched."""
        if self.steps and step == self.steps.start:
            jax.block_until_ready(state)  # what was dispatched before is not of the trace
            jax.profiler.start_trace(str(self.folder))
            self.on, self.started = True, time.perf_counter()

    def ends(self, step: int, state: Any) -> bool:
        """Whether `step` steps are done and no more are to be traced; then `finish` it."""
        if not self.on or step < self.steps.stop:
            return False
        jax.block_until_ready(state)
        self.seconds = time.perf_counter() - self.started
        return True

    def __exit__(self, *_: object) -> None:
        """A run that stops on the way leaves the trace of the steps that it took."""
        if self.on:
            self.on = False
            jax.profiler.stop_trace()

    def finish(self, program: str, rows: int = 20) -> str:
        """The dearest parts of the step, a line each, which `summary.txt` keeps.

        program: the compiled step's text, which says where each operation comes from.
        """
        self.__exit__()
        trace = max(self.folder.glob('plugins/profile/*/*.xplane.pb'))
        spent: Counter[str] = Counter()
        calls: Counter[str] = Counter()
        parts = _parts(program)
        for operation in operations(trace):
            part = parts.get(operation.name, operation.name)
            spent[part] += operation.nanoseconds
            calls[part] += 1
        steps, total = len(self.steps), spent.total()
        lines = [
            f'steps {self.steps.start + 1} to {self.steps.stop}: {self.seconds / steps * 1e3:.4g} '
            f'ms each; in operations {total / steps / 1e6:.4g} ms, over all devices and threads',
            f'{"ms a step":>10}{"share":>8}{"calls":>8}  part of the step',
        ]
        for part, time_ in spent.most_common(rows):
            lines.append(
                f'{time_ / steps / 1e6:10.3f}{time_ / total:8.1%}{calls[part] / steps:8.4g}  {part}'
            )
        text = '\n'.join(lines)
        (self.folder / 'summary.txt').write_text(text + '\n')
        return text


class Operation(NamedTuple):
    """One execution of an instruction, without those inside it."""

    name: str
    nanoseconds: int


def operations(trace: Path) -> list[Operation]:
    """What the devices did for the training step, from a trace (.xplane.pb)."""
    found: list[Operation] = []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # of jaxlib's types, on Python 3.12
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
            lines = list(plane.lines)
            # TPUs, and GPUs where XLA sums its streams up, have one line of operations among others
            for line in [line for line in lines if line.name == 'XLA Ops'] or lines:
                found += _without_inner(_events(line))
    return found


def _events(line: Any) -> Iterator[tuple[int, int, str]]:
    """(start, duration, instruction) of those that belong to the training step."""
    for event in line.events:
        stats = dict(event.stats)
        name = stats.get('hlo_op') or (line.name == 'XLA Ops' and event.name)
        if name and stats.get('hlo_module', MODULE).startswith(MODULE):
            yield int(event.start_ns), int(event.duration_ns), name.split(' = ')[0].lstrip('%')


def _without_inner(events: Iterable[tuple[int, int, str]]) -> Iterator[Operation]:
    """Each event's own time: a loop lasts as long as its body, and both are events."""
    open_: list[list[Any]] = []  # [end, name, own time], the innermost last
    for start, duration, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while open_ and open_[-1][0] <= start:
            yield Operation(*open_.pop()[1:])
        if open_:
            open_[-1][2] -= duration
        open_.append([start + duration, name, duration])
    for _, name, own in open_:
        yield Operation(name, own)


def _parts(program: str) -> dict[str, str]:
    """By instruction, the part of the model that it computes: `block_*/mlp/up/dot_general`."""
    found = re.findall(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', program, re.MULTILINE)
    return {name: _part(path) for name, path in found}


def _part(path: str) -> str:
    """`jit(train_step)/transpose(jvp(Transformer))/block_3/mlp/dot_general` without the wrapping;
    blocks are added up."""
    backward = ', backward' if 'transpose(' in path else ''
    names = re.sub(r'\b(?:jit|jvp|transpose|vmap|checkpoint|rematted_computation)\(', '', path)
    names = names.replace(')', '').removeprefix('train_step/')
    names = re.sub(r'[^/]+\._[^/]+/', '', names)  # of a private method
    return re.sub(r'_\d+(?=/)', '_*', names) + backward
