"""What a person sees while a run goes on, and what `log.txt` keeps of it.

Messages come from anywhere through `logging.getLogger(__name__)`. Progress is a live bar on a
terminal, and plain lines at a bounded rate elsewhere and in `log.txt`:

    step 300/1120  train/loss 0.1234  4,512 examples/s  eta 0:32

Everything here takes numbers that are already on the host.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from bigjax import safety

SPLITS = ('train', 'val', 'test')
# recorded, and plotted, but not worth a person's line
QUIET = ('train/learning_rate', 'train/skipped_steps')

_file_only = logging.getLogger('bigjax.log_file')  # what the console shows in a way of its own


@contextmanager
def logging_to(workdir: Path | None, console: Console) -> Iterator[None]:
    """Send what bigjax logs to the console and, with time stamps, to `<workdir>/log.txt`.

    Processes other than the first pass `None` and `Console(quiet=True)`.
    """
    logger = logging.getLogger('bigjax')
    handlers: list[logging.Handler] = [_ConsoleHandler(console)]
    if workdir is not None:
        handlers.append(logging.FileHandler(workdir / 'log.txt', encoding='utf-8'))
        handlers[-1].setFormatter(_Redacting('%(asctime)s %(levelname).1s %(message)s'))
    before = logger.level, logger.propagate
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # absl gives the root logger a handler, which would say all twice
    try:
        yield
    finally:
        logger.level, logger.propagate = before
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return safety.redacted(super().format(record))


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console):
        super().__init__()
        self.console = console
        self.addFilter(lambda record: record.name != _file_only.name)

    def emit(self, record: logging.LogRecord) -> None:
        level = '' if record.levelno <= logging.INFO else f'{record.levelname.lower()}: '
        _print(self.console, level + self.format(record))


@dataclass
class Progress:
    """Where a run stands; `update` costs about a microsecond when there is nothing to print."""

    total: int
    step: int
    console: Console
    every: float
    clock: Callable[[], float]
    _first: tuple[int, float] | None = None  # the first step that came after compiling
    _latest: dict[str, float] = field(default_factory=dict)
    _news: dict[str, tuple[int, float]] = field(default_factory=dict)  # not yet written
    _next_line: float = 0.0

    def update(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """`step` is done; `metrics`, if any were read, are flat keys such as `val/loss`."""
        now = self.clock()
        self.step = step
        if self._first is None:
            self._first, self._next_line = (step, now), now
        if metrics:
            self._latest.update(metrics)
            self._news.update({key: (step, value) for key, value in metrics.items()})
            if now >= self._next_line:
                self.flush()
                self._next_line = now + self.every

    def flush(self) -> None:
        """Write the latest of each metric that came in since the last time, a line a step."""
        steps = sorted({step for step, _ in self._news.values()})
        for step in steps:
            shown = _shown({key: value for key, (at, value) in self._news.items() if at == step})
            if shown:
                pace = self._pace() if step == steps[-1] else []
                line = '  '.join([f'step {step}/{self.total}', *shown, *pace])
                _file_only.info(line)
                if not self.console.is_interactive:
                    _print(self.console, line)
        self._news = {}

    def render(self) -> Group:
        """The bar of a terminal, drawn a few times a second by rich's own thread."""
        ends = Column(no_wrap=True)
        bar = Table.grid(ends, Column(ratio=1), ends.copy(), padding=(0, 2), expand=True)
        bar.add_row(
            f'step {self.step:,}/{self.total:,}',
            ProgressBar(total=self.total, completed=self.step),
            '  '.join(self._pace()),
        )
        shown = '  '.join(_shown(dict(self._latest)))
        return Group(bar, Text(shown, style='dim', no_wrap=True, overflow='ellipsis'))

    def _pace(self) -> list[str]:
        """Throughput, time a step, time left; what is not known yet is left out."""
        pace = []
        unit = 'tokens' if 'perf/tokens_per_second' in self._latest else 'examples'
        if (rate := self._latest.get(f'perf/{unit}_per_second')) is not None:
            pace.append(f'{rate:,.0f} {unit}/s')
        if (seconds := self._latest.get('perf/step_seconds')) is not None:
            pace.append(f'{seconds * 1e3:.3g} ms/step')
        if self._first is not None and self.step > self._first[0]:
            seconds = (self.clock() - self._first[1]) / (self.step - self._first[0])
            pace.append(f'eta {duration((self.total - self.step) * seconds)}')
        return pace


@contextmanager
def progress(
    total_steps: int,
    start_step: int = 0,
    console: Console | None = None,
    every: float = 5.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """A `Progress` for the loop to update: a live bar if the console is interactive; else, and in
    log.txt always, a line at most `every` seconds and at the end."""
    show = Progress(total_steps, start_step, console or Console(), every, clock)
    live = Live(console=show.console, get_renderable=show.render, refresh_per_second=4)
    try:
        with live if show.console.is_interactive else nullcontext():
            yield show
    finally:
        show.flush()


def final_table(metrics: Mapping[str, float], console: Console) -> None:
    """Show the results as aligned text, a row a metric and a column a split."""
    splits, rows = by_split(metrics)
    width = max(map(len, rows), default=0)
    lines = [' ' * width + ''.join(f'{split:>12}' for split in splits)]
    for name, values in rows.items():
        cells = [number(values[split]) if split in values else '' for split in splits]
        lines.append(f'{name:{width}}' + ''.join(f'{cell:>12}' for cell in cells))
    for line in lines:
        _file_only.info(line)
        _print(console, line)


def by_split(metrics: Mapping[str, float]) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Flat keys as (the splits there are, metric -> split -> value).

    Metrics of training alone (the learning rate, norms) are left out where others were evaluated.
    """
    rows: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        split, _, name = key.partition('/')
        if split in SPLITS:
            rows.setdefault(name, {})[split] = value
    rows = {name: values for name, values in rows.items() if set(values) - {'train'}} or rows
    return [split for split in SPLITS if any(split in values for values in rows.values())], rows


def number(value: float) -> str:
    """Four significant digits, without an exponent where a person would write none."""
    return f'{value:,.0f}' if 1e4 <= abs(value) < 1e9 else f'{value:.4g}'


def duration(seconds: float) -> str:
    """`0:32`, `12:05`, `1:02:03`, `50:00:00`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f'{hours}:{minute:02}:{second:02}' if hours else f'{minute}:{second:02}'


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _shown(metrics: Mapping[str, float]) -> list[str]:
    """Losses first: a narrow terminal cuts off the rest."""
    keys = [key for key in metrics if not key.startswith('perf/') and key not in QUIET]
    keys.sort(key=lambda key: not key.endswith('/loss'))
    return [f'{key} {number(metrics[key])}' for key in keys]
