"""What became of the runs of a study: `<study>/ledger.jsonl`, to which lines are only ever added.

    {"event": "started", "id": "1f0c2a9b7d", "time": 1.7e9, "config": "configs/x.py",
     "overrides": {"seed": 0}}
    {"event": "finished", "id": "1f0c2a9b7d", "time": 1.7e9, "step": 300, "seconds": 20.4,
     "params": 9930, "tokens": null, "examples": 19200, "flops": 1.3e9, "formula": "...",
     "metrics": {"val/loss": 0.1}}

The last event of a run says how it stands: `started`; `finished` and `diverged`, its results;
`failed`, with `exit_code` and `error`; `stopped`, to go on. Any number of processes may write.
"""

import csv
import fcntl
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bigjax.errors import EnvironmentProblem
from bigjax.study import report
from bigjax.train.progress import SPLITS, by_split
from bigjax.train.writers import Row, read_events, read_lines

LEDGER, RUNS = 'ledger.jsonl', 'runs'
RESULTS = ('finished', 'diverged')
MEASURES = ('params', 'params_nonembedding', 'tokens', 'examples', 'flops', 'seconds')


def append(study: Path, event: str, run_id: str, **details: Any) -> None:
    """Adds one line at once, after what others wrote. Raises: EnvironmentProblem."""
    path = study / LEDGER
    row = {'event': event, 'id': run_id, 'time': time.time(), **details}
    try:
        study.mkdir(parents=True, exist_ok=True)
        with path.open('ab', buffering=0) as file:
            with suppress(OSError):  # a file system without locks; a short line still goes in whole
                fcntl.flock(file, fcntl.LOCK_EX)
            before = path.read_bytes()
            file.truncate(before.rfind(b'\n') + 1)  # less what a full disk tore
            file.write(json.dumps(row, allow_nan=False).encode() + b'\n')
    except OSError as error:
        raise EnvironmentProblem(f'cannot write {path}: {error.strerror}') from error


def read(study: Path) -> dict[str, Row]:
    """By id, in the order of their starts: all that is said of each run, the latest of each key;
    metrics that are not finite are numbers again. Raises: DataError."""
    path = study / LEDGER
    runs: dict[str, Row] = {}
    for row in read_lines(path) if path.is_file() else ():
        runs[row['id']] = runs.get(row['id'], {}) | row
    for row in runs.values():
        row['metrics'] = {key: float(value) for key, value in row.get('metrics', {}).items()}
    return runs


def has_ended(folder: Path) -> bool:
    """Whether the run in the folder came to a result."""
    events = read_events(folder)
    return bool(events) and events[-1]['event'] in ('done', 'diverged')


def outcome(folder: Path) -> tuple[str, Row]:
    """What came of the run in a folder: `finished` or `diverged`, and the measures and metrics of
    a line. FLOPs are those of all its steps, by the formula beside them. Raises: DataError."""
    run = report.read(folder)
    event = 'finished' if run.events[-1]['event'] == 'done' else 'diverged'
    step = run.events[-1]['step']
    work = next(row['details'] for row in reversed(run.events) if row['event'] == 'start')
    metrics = {key: value for key, value in run.results.items() if key.split('/')[0] in SPLITS}
    main = report.headline(run, *by_split(metrics))
    return event, {
        'step': step,
        'seconds': sum(report.time_spent(run).values()),
        'params': work.get('params'),  # older runs do not tell
        'params_nonembedding': work.get('params_nonembedding'),
        'tokens': None if work['tokens'] is None else step * work['tokens'],
        'examples': step * work['examples'],
        'flops': step * work['flops'],
        'formula': work['formula'],
        'main': main and f'{main["split"]}/{main["name"]}',
        'metrics': {
            key: value if math.isfinite(value) else str(value) for key, value in metrics.items()
        },
    }


def table(study: Path) -> str:
    """The ledger as CSV, a row a run: its measures, `loss` (of val, else of train; none if it
    diverged), overrides, metrics. Raises: DataError."""
    rows = []
    for run_id, row in read(study).items():
        metrics = row['metrics']
        loss = metrics.get('val/loss', metrics.get('train/loss'))
        rows.append(
            {'id': run_id, 'status': row['event']}
            | {name: row.get(name) for name in MEASURES}
            | {'loss': loss if row['event'] == 'finished' else None}
            | row.get('overrides', {})
            | metrics
        )
    return to_csv(rows)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Columns in the order in which they turn up; nothing where a row lacks one."""
    text = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(names), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
