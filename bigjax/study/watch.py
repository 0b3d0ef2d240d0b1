"""What a person sees while a sweep goes on: a live table, or a line an event without a terminal."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bigjax.study import ledger
from bigjax.study.jobs import Job, label, varying
from bigjax.train.progress import duration, number
from bigjax.train.writers import METRICS, Row, read_events

TAIL = 16_384
"""Bytes at the end of metrics.jsonl that tell how a run stands."""

ORDER = ('started', 'failed', 'stopped', 'diverged', 'finished', 'waiting')
WORDS = {'started': 'running', 'finished': 'done'}
STYLES = {'started': 'cyan', 'failed': 'red', 'diverged': 'yellow', 'finished': 'green'}


class Watch:
    """Where a sweep stands, of what it was told and what the run folders say."""

    def __init__(self, jobs: Sequence[Job], study: Path, slots: int, console: Console):
        self.jobs, self.study, self.slots, self.console = jobs, study, slots, console
        self.rows = ledger.read(study)
        self.varying = varying([job.overrides for job in jobs])

    def tell(self, job: Job, event: str, details: Mapping[str, Any] | None = None) -> None:
        """Something happened to a run."""
        row = self.rows[job.id] = self.rows.get(job.id, {}) | {'event': event, **(details or {})}
        if self.console.is_interactive:
            return
        settled = sum(self._event(job) in (*ledger.RESULTS, 'failed') for job in self.jobs)
        words = [f'{settled}/{len(self.jobs)}', job.id, label(job.overrides, self.varying)]
        words += [WORDS.get(event, event), _result(row)]
        if 'seconds' in row and event in ledger.RESULTS:
            words.append(duration(row['seconds']))
        self._line('  '.join(word for word in words if word))

    def render(self) -> Table:
        """The table, those that run first, no longer than the terminal."""
        table = Table('run', 'settings', 'status', 'step', 'loss', 'eta', expand=True)
        table.caption = self._counts()
        jobs = sorted(self.jobs, key=lambda job: ORDER.index(self._event(job)))
        for job in jobs[: max(self.console.height - 6, 4)]:
            event, known = self._event(job), self.rows.get(job.id, {})
            cells = [str(known.get('step', '')), _result(known), '']
            if event == 'started':
                cells = _now(job.folder(self.study))
            settings = label(job.overrides, self.varying)
            row = map(Text, (job.id, settings, WORDS.get(event, event), *cells))
            table.add_row(*row, style=STYLES.get(event, 'dim'))
        return table

    def conclude(self) -> None:
        """What failed, and how many runs stand how."""
        for job in self.jobs:
            if self._event(job) == 'failed':
                settings = label(job.overrides, self.varying)
                self._line(f'failed: {job.id}  {settings}  {self.rows[job.id]["error"]}')
        self._line(f'{self._counts()}; {self.study / ledger.LEDGER}')

    def _counts(self) -> str:
        events = Counter(map(self._event, self.jobs))
        counts = [f'{events[event]} {WORDS.get(event, event)}' for event in ORDER if events[event]]
        return f'{len(self.jobs)} runs: {", ".join(counts)}'

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _event(self, job: Job) -> str:
        return self.rows.get(job.id, {}).get('event', 'waiting')


@contextmanager
def watching(jobs: Sequence[Job], study: Path, slots: int, console: Console) -> Iterator[Watch]:
    """A `Watch`, live on a terminal; in the end, what came of it."""
    watch = Watch(jobs, study, slots, console)
    if console.is_interactive:
        with Live(console=console, get_renderable=watch.render, refresh_per_second=2):
            yield watch
    else:
        yield watch
    watch.conclude()


def last_metrics(folder: Path) -> Row:
    """The latest value of each key of metrics.jsonl, as far as its end tells."""
    path = folder / METRICS
    if not path.is_file():
        return {}
    with path.open('rb') as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().split(b'\n')[:-1]
    row: Row = {}
    for line in lines if path.stat().st_size <= TAIL else lines[1:]:
        row |= json.loads(line)
    return row


def _result(row: Mapping[str, Any]) -> str:
    event, main = row.get('event'), row.get('main')
    if event == 'failed':
        return row['error']
    if event != 'finished' or main is None:
        return ''
    return f'{main} {number(float(row["metrics"][main]))}'


def _now(folder: Path) -> list[str]:
    """Step, loss and time left of a run that goes on."""
    starts = [row for row in read_events(folder) if row['event'] == 'start']
    row = last_metrics(folder)
    if not starts or 'train/loss' not in row:
        return ['', '', '']
    step, total = row['step'], starts[-1]['details']['steps']
    loss = row.get('val/loss', row['train/loss'])
    begun, now = starts[-1].get('step', 0), time.time()
    eta = ''
    if step > begun:
        eta = duration((now - starts[-1]['time']) / (step - begun) * (total - step))
    return [f'{step:,}/{total:,}', number(loss) if loss is not None else 'nan', eta]
