"""A paper's result again: run `experiments/<name>/`, and judge what came out.

experiment.py   measure(study, smoke, data) -> rows; draw(rows, figure)
expected.csv    what the paper says: quantity, relation, value, tolerance, source
results.csv     what was measured here, a row a quantity (and seed, width, ...)
figure.png      drawn from results.csv alone
"""

import csv
import math
import statistics
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from rich.console import Console

from bigjax.config_file import run_file
from bigjax.errors import ConfigError, DataError
from bigjax.study import ledger, plots
from bigjax.train.progress import number
from bigjax.train.writers import replace_file

EXPERIMENT, EXPECTED, RESULTS, FIGURE = 'experiment.py', 'expected.csv', 'results.csv', 'figure.png'

RELATIONS = {
    'within': lambda ours, value, tolerance: abs(ours - value) <= tolerance,
    'relative': lambda ours, value, tolerance: abs(ours - value) <= tolerance * abs(value),
    'at_least': lambda ours, value, tolerance: ours >= value - tolerance,
    'at_most': lambda ours, value, tolerance: ours <= value + tolerance,
}
"""By its name in expected.csv: whether our value agrees with the paper's."""

Row = dict[str, Any]


class Expected(NamedTuple):
    """A line of expected.csv; an empty tolerance is 0."""

    quantity: str
    relation: str
    value: float
    tolerance: float
    source: str

    def __str__(self) -> str:
        value, slack = number(self.value), f'{self.tolerance:.3g}'
        return {
            'within': f'{value} ± {slack}',
            'relative': f'{value} ± {100 * self.tolerance:.3g} %',
            'at_least': f'≥ {value}' + (f' − {slack}' if self.tolerance else ''),
            'at_most': f'≤ {value}' + (f' + {slack}' if self.tolerance else ''),
        }[self.relation]


class Verdict(NamedTuple):
    """What was expected, and the mean of what was measured (None where it was not)."""

    expected: Expected
    ours: float | None

    @property
    def met(self) -> bool:
        if self.ours is None:
            return False
        _, relation, value, tolerance, _ = self.expected
        return RELATIONS[relation](self.ours, value, tolerance)


def reproduce(
    folder: Path, workdir: Path, data: Path | None, smoke: bool, console: Console
) -> bool:
    """Measures, writes results.csv and figure.png beside the experiment, shows the verdicts;
    whether all of them are good.

    smoke: at tiny size, files into `workdir`; good is what is finite. data: a path for `measure`.
    Raises: ConfigError, DataError.
    """
    experiment = load(folder)
    expected = read_expected(folder / EXPECTED)
    workdir.mkdir(parents=True, exist_ok=True)
    results = experiment.measure(workdir, smoke, data)
    _check(results)
    target = workdir if smoke else folder
    write_results(target / RESULTS, results)
    results = read_results(target / RESULTS)
    plots.save(draw(experiment, results), target / FIGURE)
    verdicts = judge(expected, results)
    for line in table(verdicts):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if smoke:
        return all(math.isfinite(row['value']) for row in results)
    return all(verdict.met for verdict in verdicts)


@plots.styled
def draw(experiment: Any, results: list[Row]) -> Figure:
    """Its figure, from the rows of results.csv, in the house's style."""
    figure = Figure()
    experiment.draw(results, figure)
    return figure


def load(folder: Path) -> Any:
    """The module experiment.py, which has `measure` and `draw`. Raises: ConfigError."""
    experiment = run_file(folder / EXPERIMENT, 'measure')
    if not hasattr(experiment, 'draw'):
        raise ConfigError(f'{folder / EXPERIMENT} has no draw(); define it')
    return experiment


def read_expected(path: Path) -> list[Expected]:
    """Raises: DataError."""
    expected = []
    for line, row in enumerate(_read(path), 2):
        if set(row) != set(Expected._fields) or row['relation'] not in RELATIONS:
            raise DataError(
                f'{path}:{line}: expected columns {", ".join(Expected._fields)} and a relation of '
                f'{", ".join(RELATIONS)}, got {row}'
            )
        try:
            numbers = float(row['value']), float(row['tolerance'] or 0)
        except ValueError as error:
            raise DataError(f'{path}:{line}: {error}') from None
        expected.append(Expected(row['quantity'], row['relation'], *numbers, row['source']))
    return expected


def read_results(path: Path) -> list[Row]:
    """Rows as `measure` gave them: numbers are numbers, a key without a value is left out."""
    rows = [{key: _plain(text) for key, text in row.items() if text} for row in _read(path)]
    return [row | {'value': float(row['value'])} for row in rows]


def write_results(path: Path, rows: list[Row]) -> None:
    """Columns in the order in which they turn up."""
    replace_file(path, ledger.to_csv(rows).encode())


def judge(expected: Iterable[Expected], results: Iterable[Row]) -> list[Verdict]:
    """A verdict for each line of expected.csv, on the mean of the rows of its quantity."""
    measured: dict[str, list[float]] = {}
    for row in results:
        measured.setdefault(row['quantity'], []).append(row['value'])
    return [
        Verdict(line, statistics.fmean(values) if (values := measured.get(line.quantity)) else None)
        for line in expected
    ]


def table(verdicts: Iterable[Verdict]) -> list[str]:
    """The lines of a Markdown table, for the README of the experiment."""
    lines = ['| quantity | ours | paper | verdict |', '|---|---|---|---|']
    for verdict in verdicts:
        ours = 'not measured' if verdict.ours is None else number(verdict.ours)
        word = 'met' if verdict.met else 'missed'
        lines.append(f'| {verdict.expected.quantity} | {ours} | {verdict.expected} | {word} |')
    return lines


def _check(results: list[Row]) -> None:
    for row in results:
        if not {'quantity', 'value'} <= set(row):
            raise DataError(f'measure() gave {row}; expected keys quantity and value in each row')
    if not results:
        raise DataError('measure() gave no rows')


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise DataError(f'no {path.name} in {path.parent}')
    with path.open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def _plain(text: str) -> Any:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return {'True': True, 'False': False}.get(text, text)
