"""What the loop costs on top of its jitted step: logging, prefetch, progress and all.

python -m benchmarks.overhead
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks.cases import CASES, bare_steps, built, case
from benchmarks.timing import alternate, print_table, spread
from bigjax.train.loop import train
from bigjax.train.writers import columns, read_metrics

GOALS = {'MLP': 'below 1 ms', 'CNN': 'below 2 %', 'Tra': 'below 2 %'}


def looped(name: str, steps: int, log_every: int) -> list[float]:
    """Seconds a step in the real loop, one value each time that it logged."""
    with tempfile.TemporaryDirectory() as folder:
        train(case(name, steps, log_every), Path(folder))
        return columns(read_metrics(Path(folder)))['perf/step_seconds'][1].tolist()


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--smoke', action='store_true', help='a few steps, to see that it runs')
    arguments = parser.parse_args(argv)
    rows = []
    for name in CASES:
        count = 20 if arguments.smoke else (2000 if name.startswith('MLP') else 100)
        log_every = max(count // 20, 5)
        bare = bare_steps(built(name), log_every)
        inside, outside = [], []
        for _ in range(1 if arguments.smoke else arguments.rounds):
            laps = alternate({'bare': bare}, count // log_every)['bare']
            inside.append(statistics.median(laps) / log_every)
            outside.append(statistics.median(looped(name, count, log_every)))
        extra = statistics.median(b - a for a, b in zip(inside, outside, strict=True))
        share = extra / statistics.median(inside)
        rows.append(
            [
                name,
                spread(inside),
                spread(outside),
                f'{extra * 1e3:.3f}',
                f'{share:.1%}',
                GOALS[name[:3]],
            ]
        )
    print_table(
        ['case', 'bare step, ms', 'loop, ms a step', 'extra, ms', 'of the step', 'goal'], rows
    )


if __name__ == '__main__':
    main()
