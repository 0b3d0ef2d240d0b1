"""Runs beside each other: those below a folder, how two of them differ, a report of many."""

import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bigjax.config import difference, flatten
from bigjax.errors import DataError
from bigjax.study import ledger, plots, report
from bigjax.study.jobs import label, varying
from bigjax.study.report import Run, plain
from bigjax.study.watch import WORDS, last_metrics
from bigjax.train import lock
from bigjax.train.progress import SPLITS, by_split, duration, number
from bigjax.train.writers import METRICS, columns, replace_file

LEGEND = 60
"""Letters of a line of it; runs that take more to tell apart have the names of their folders."""


def ls(folder: Path, console: Console) -> None:
    """A line a run: those of a study's ledger, or else all below `folder`. Raises: DataError."""
    rows = _of_ledger(folder) if is_study(folder) else _below(folder)
    if not rows:
        raise DataError(f'no runs in {folder}; expected a study, or run folders below it')
    table = Table('run', 'settings', 'status', 'step', 'result', 'age', box=None)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def diff(one: Path, other: Path, console: Console) -> None:
    """Configs and results side by side, as far as they differ. Raises: DataError."""
    a, b = report.read(one), report.read(other)
    table = Table('', a.name, b.name, box=None)
    for key, values in difference(a.config, b.config).items():
        table.add_row(key, *(Text(plain(value)) for value in values))
    table.add_section()
    for key in dict.fromkeys([*_metrics(a), *_metrics(b)]):
        found = [_metrics(run).get(key) for run in (a, b)]
        table.add_row(key, *('' if value is None else number(value) for value in found))
    console.print(table)


def write(arguments: Sequence[Path], out: Path | None) -> Path:
    """One self-contained page that compares runs, given by their folders or by studies; runs that
    differ in their seed alone are a group. By default it is report.html in the folder that holds
    them all. Raises: DataError."""
    folders = [run for path in arguments for run in (_runs(path) if is_study(path) else [path])]
    runs = [report.read(folder) for folder in folders]
    if not runs:
        raise DataError(f'no run of {arguments[0]} has metrics yet')
    common = os.path.commonpath([path.resolve() for path in arguments])
    out = out or Path(common) / 'report.html'
    png = out.with_suffix('.png')
    groups, keys = grouped(runs)
    series = {name: [columns(run.metrics) for run in group] for name, group in groups.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    plots.save(plots.overlaid(series), png)
    names = dict.fromkeys(key for run in runs for key in _metrics(run))
    split = next((s for s in reversed(SPLITS) if any(n.startswith(s) for n in names)), '')
    page = report.template('compare_template.html').render(
        title=Path(common).name,
        png=png.read_bytes(),
        width=report.css_width(png.read_bytes()),
        keys=keys,
        names=[name for name in names if name.startswith(split)],
        groups=[_group(name, group, keys) for name, group in groups.items()],
        runs=[(run.name, run.config.get('seed', 0), _status(run), _metrics(run)) for run in runs],
    )
    replace_file(out, page.encode())
    return out


def is_study(folder: Path) -> bool:
    """Whether the folder has a ledger."""
    return (folder / ledger.LEDGER).is_file()


def grouped(runs: Sequence[Run]) -> tuple[dict[str, list[Run]], list[str]]:
    """Runs by what their configs say but for the seed, and the fields in which groups differ."""
    flats = [{k: v for k, v in flatten(run.config).items() if k != 'seed'} for run in runs]
    keys = varying(flats)
    groups: dict[str, list[Run]] = {}
    for run, flat in zip(runs, flats, strict=True):
        settings = json.dumps({key: flat.get(key) for key in keys}, sort_keys=True)
        groups.setdefault(settings, []).append(run)
    named = {}
    for group in groups.values():
        name = label(flatten(group[0].config), keys)
        name = name if 0 < len(name) <= LEGEND else group[0].name
        named[name if name not in named else f'{name} ({group[0].name})'] = group
    return named, keys


def _group(name: str, runs: list[Run], keys: list[str]) -> dict[str, Any]:
    """A row of the table; of each metric the mean and the deviation (n - 1)."""
    flat = flatten(runs[0].config)
    metrics: dict[str, list[float]] = {}
    for run in runs:
        for key, value in _metrics(run).items():
            metrics.setdefault(key, []).append(value)
    return {
        'name': name,
        'fields': [plain(flat.get(key)) for key in keys],
        'seeds': len(runs),
        'status': ', '.join(dict.fromkeys(map(_status, runs))),
        'metrics': {
            key: (statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)
            for key, values in metrics.items()
        },
    }


def _metrics(run: Run) -> dict[str, float]:
    """The results that people compare, by flat key: as in the report of one run."""
    _, rows = by_split(run.results)
    return {f'{split}/{name}': v for name, row in rows.items() for split, v in row.items()}


def _status(run: Run) -> str:
    last = run.events[-1]['event'] if run.events else ''
    return last if last in ('done', 'diverged') else 'stopped'


def _runs(study: Path) -> list[Path]:
    folders = [study / ledger.RUNS / run_id for run_id in ledger.read(study)]
    return [folder for folder in folders if last_metrics(folder)]


def _of_ledger(study: Path) -> list[tuple[str, ...]]:
    runs = ledger.read(study)
    keys = varying([row.get('overrides', {}) for row in runs.values()])
    rows: list[tuple[str, ...]] = []
    for run_id, row in runs.items():
        folder = study / ledger.RUNS / run_id
        event: str = row['event']
        if event == 'started':
            event = 'running' if lock.is_held(folder) else 'stopped'
        step = row.get('step', last_metrics(folder).get('step', ''))
        main = row.get('main')
        result = f'{main} {number(row["metrics"][main])}' if main else row.get('error', '')
        settings = label(row.get('overrides', {}), keys)
        rows.append(
            (run_id, settings, WORDS.get(event, event), str(step), result, _age(row['time']))
        )
    return rows


def _below(folder: Path) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for path in sorted(folder.rglob(METRICS)):
        place = path.parent
        run = report.read(place)
        status = 'running' if lock.is_held(place) else _status(run)
        main = report.headline(run, *by_split(run.results))
        result = f'{main["split"]}/{main["name"]} {number(main["value"])}' if main else ''
        step = str(run.metrics[-1]['step']) if run.metrics else ''
        name = str(place.relative_to(folder)) if place != folder else place.resolve().name
        rows.append((name, '', status, step, result, _age(path.stat().st_mtime)))
    return rows


def _age(moment: float) -> str:
    seconds = max(time.time() - moment, 0)
    return f'{seconds / 86400:.0f} days' if seconds > 2 * 86400 else duration(seconds)
