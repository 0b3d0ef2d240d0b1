"""What a run writes of itself as it goes, and how to read it back.

`metrics.jsonl` is the source of truth: one object a line with `step`, `time` (unix seconds),
`attempt` and flat keys such as `val/loss`. Of a value that is not finite it says so beside a null:

    {"step": 7, "time": 1.7e9, "attempt": 1, "train/loss": null, "nonfinite": {"train/loss": "inf"}}

`events.jsonl` tells what happened: `event`, `time`, `attempt`, `step` if there is one, `details`.
TensorBoard and W&B are sinks beside them: they may fail, the run and these two files go on.
"""

import json
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from bigjax.errors import ConfigError, DataError, EnvironmentProblem

Row = dict[str, Any]

METRICS = 'metrics.jsonl'
EVENTS = 'events.jsonl'
_NOT_METRICS = ('step', 'time', 'attempt', 'nonfinite')

log = logging.getLogger(__name__)


class Sink(NamedTuple):
    """Another home for metrics."""

    write: Callable[[int, Mapping[str, float]], None]
    close: Callable[[], None]


class Writer(AbstractContextManager):
    """The metrics, events and sinks of one attempt at a run; use it as a context manager.

    Opening it after a crash mends the files: a torn last line goes, and so do the metrics past
    `restored_step` (None: nothing was restored, all of them), which this attempt will write again.
    Only the first process writes: any other passes `workdir=None`.

    A line reaches the operating system before `metrics` or `event` returns, so a kill loses none;
    EnvironmentProblem is raised where it cannot.
    """

    def __init__(
        self,
        workdir: Path | None,
        restored_step: int | None = None,
        sinks: Mapping[str, Sink] | None = None,
    ):
        nowhere = Path(os.devnull)
        metrics, events = (workdir / METRICS, workdir / EVENTS) if workdir else (nowhere, nowhere)
        self._sinks = dict(sinks or {})
        past, _ = _mend(events, lambda row: True)
        self.attempt = 1 + max((row['attempt'] for row in past), default=0)
        last_step = -1 if restored_step is None else restored_step
        kept, dropped = _mend(metrics, lambda row: row['step'] <= last_step)
        self._metrics = metrics.open('a', buffering=1, encoding='utf-8')
        self._events = events.open('a', buffering=1, encoding='utf-8')
        starts = [row for row in past if row['event'] == 'start']  # maybe of a later step
        done = [*kept, *starts, *(row for row in past if row.get('step', -1) <= last_step)]
        for attempt in sorted({row['attempt'] for row in dropped}):
            self.event('lost_work', restored_step, **_lost(attempt, done, dropped, past))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line of numbers, already on the host, and hand them to the sinks."""
        values = {key: float(value) for key, value in values.items()}
        row: Row = {'step': int(step), 'time': time.time(), 'attempt': self.attempt, **values}
        nonfinite = {key: str(value) for key, value in values.items() if not math.isfinite(value)}
        if nonfinite:
            row |= dict.fromkeys(nonfinite) | {'nonfinite': nonfinite}
        _append(self._metrics, row)
        self._each_sink(lambda sink: sink.write(step, values))

    def event(self, event: str, step: int | None = None, **details: Any) -> None:
        """Append what just happened; `seconds` among the details is how long it took.

        What JSON cannot hold, an object or a number that is not finite, is written as text.
        """
        row: Row = {'event': event, 'time': time.time(), 'attempt': self.attempt}
        row |= {} if step is None else {'step': int(step)}
        plain = json.dumps(details, default=_plain)
        row['details'] = json.loads(plain, parse_constant=lambda name: str(float(name)))
        _append(self._events, row)

    def __exit__(self, *_: object) -> None:
        self._each_sink(lambda sink: sink.close())
        for file in (self._metrics, self._events):
            with suppress(OSError):  # what did not reach the disk was told at its line
                file.close()

    def _each_sink(self, call: Callable[[Sink], None]) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                call(sink)
            except Exception as error:  # whatever it is, it is the sink's affair and not the run's
                del self._sinks[name]
                log.warning('sink %s failed and is off for this attempt: %r', name, error)
                self.event('sink_failed', sink=name, error=repr(error))


def open_sinks(
    names: Iterable[str], workdir: Path, restored_step: int | None, config: Mapping[str, Any]
) -> dict[str, Sink]:
    """The sinks `names`, keys of SINKS. Raises: ConfigError if one's package is not installed."""
    sinks: dict[str, Sink] = {}
    for name in names:
        try:
            sinks[name] = SINKS[name](workdir, restored_step, config)
        except ImportError as error:
            raise ConfigError(
                f'config.sinks asks for {name}, which cannot be imported ({error}); '
                f'pip install bigjax[{name}], or leave it out'
            ) from error
        except Exception as error:
            log.warning('sink %s did not open and is off for this attempt: %r', name, error)
    return sinks


def tensorboard(workdir: Path, restored_step: int | None, config: Mapping[str, Any]) -> Sink:
    """Event files in `<workdir>/tensorboard`, written by a thread of tensorboardX."""
    import tensorboardX

    start = 0 if restored_step is None else restored_step + 1
    writer = tensorboardX.SummaryWriter(str(workdir / 'tensorboard'), purge_step=start)

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            writer.add_scalar(key, value, step)

    return Sink(write, writer.close)


def weights_and_biases(workdir: Path, restored_step: int | None, config: Mapping[str, Any]) -> Sink:
    """A W&B run that all attempts at one workdir share; WANDB_* variables have its settings."""
    import wandb

    id_file = workdir / 'wandb_id.txt'
    if not id_file.exists():
        id_file.write_text(uuid.uuid4().hex)
    run = wandb.init(
        project=os.environ.get('WANDB_PROJECT', 'bigjax'),
        name=workdir.name,
        id=id_file.read_text(),
        resume='allow',
        dir=str(workdir),
        config=dict(config),
    )
    # W&B's own step only grows and it drops what lies behind; ours goes back on a resume.
    run.define_metric('step')
    run.define_metric('*', step_metric='step')
    return Sink(lambda step, metrics: run.log({'step': step, **metrics}), run.finish)


SINKS = {'tensorboard': tensorboard, 'wandb': weights_and_biases}


def read_metrics(workdir: Path) -> list[Row]:
    """The lines of metrics.jsonl, without a torn last one; values that are not finite are back.

    Raises: DataError for a folder without metrics, and for a damaged line before the last.
    """
    path = workdir / METRICS
    if not path.is_file():
        raise DataError(f'no {METRICS} in {str(workdir)!r}; expected the folder of a run')
    rows = read_lines(path)
    for row in rows:
        row.update({key: float(value) for key, value in row.pop('nonfinite', {}).items()})
    return rows


def read_events(workdir: Path) -> list[Row]:
    """The lines of events.jsonl, none if there is no such file."""
    path = workdir / EVENTS
    return read_lines(path) if path.is_file() else []


def read_lines(path: Path) -> list[Row]:
    """The objects of a JSON-lines file, without a torn last line. Raises: DataError."""
    lines = path.read_bytes().split(b'\n')[:-1]  # after the last newline: nothing, or a torn line
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(
                f'{path}:{number}: not JSON ({error}); delete that line to go on without it'
            ) from None
    return rows


def columns(rows: Iterable[Row]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metrics by key: the steps (int) at which it was written, and its values (float64)."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key not in _NOT_METRICS:
                series.setdefault(key, []).append((row['step'], value))
    return {
        key: (np.array([step for step, _ in points]), np.array([y for _, y in points], float))
        for key, points in series.items()
    }


def replace_file(path: Path, content: bytes) -> None:
    """Write `path` so that at any moment it holds either the old content or all of the new."""
    temporary = path.with_name(path.name + '.tmp')
    with temporary.open('wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _lost(attempt: int, done: list[Row], dropped: list[Row], events: list[Row]) -> Row:
    """What an attempt did that is to be done again, and for how many seconds, as far as it told.

    done: rows of what need not be; dropped: rows of metrics past that.
    """
    since, until = (
        max((row['time'] for row in rows if row['attempt'] == attempt), default=math.inf)
        for rows in (done, dropped)
    )
    lines = sum(row['attempt'] == attempt for row in dropped)
    other = sum(
        row['details'].get('seconds', 0)
        for row in events
        if row['attempt'] == attempt and since < row['time'] <= until and row['event'] != 'steps'
    )
    seconds = max(until - since - other, 0.0)
    return {'of_attempt': attempt, 'lines': lines, 'until': until, 'seconds': seconds}


def _mend(path: Path, keep: Callable[[Row], bool]) -> tuple[list[Row], list[Row]]:
    """Leave in `path` the whole lines that `keep` accepts: (those rows, the others)."""
    if not path.is_file():
        return [], []
    rows = read_lines(path)
    kept, refused = ([row for row in rows if bool(keep(row)) == want] for want in (True, False))
    content = ''.join(map(_dumps, kept)).encode()
    if content != path.read_bytes():
        replace_file(path, content)
    return kept, refused


def _append(file: TextIO, row: Row) -> None:
    try:
        file.write(_dumps(row))
    except OSError as error:
        raise EnvironmentProblem(f'cannot write {file.name}: {error.strerror}') from error


def _dumps(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + '\n'


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
