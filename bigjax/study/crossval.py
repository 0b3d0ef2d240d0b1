"""k-fold cross-validation: every fold trained as a run of its own, then mean and deviation."""

import json
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bigjax.config import Config, with_values
from bigjax.sharding import hosts
from bigjax.train.loop import train
from bigjax.train.progress import number
from bigjax.train.writers import replace_file

RESULTS = 'crossval.json'


def cross_validate(
    config: Config, workdir: Path, folds: int, console: Console
) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation (n - 1) of each test metric over the held-out folds.

    Each fold lives in `workdir/fold_<i>`; folds that are done already are only evaluated again.
    """
    results = []
    for fold in range(folds):
        console.rule(f'fold {fold + 1} of {folds}')
        one = with_values(config, **{'data.folds': folds, 'data.fold': fold})
        results.append(train(one, workdir / f'fold_{fold}', console))
    names = [name for name in results[0] if name.startswith('test/')]
    by_name = {name: [result[name] for result in results] for name in names}
    summary = {name: (statistics.mean(v), statistics.stdev(v)) for name, v in by_name.items()}
    if hosts.leads():
        content = json.dumps({'folds': by_name, 'summary': summary})
        replace_file(workdir / RESULTS, content.encode())
    table = Table('metric', 'mean', 'deviation', 'folds')
    for name, (mean, deviation) in summary.items():
        table.add_row(name, *map(number, (mean, deviation)), '  '.join(map(number, by_name[name])))
    console.print(table)
    return summary
