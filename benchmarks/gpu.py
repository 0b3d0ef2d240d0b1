"""What the scripts for a GPU share: two sides in turn on one card, and a line of JSON for each.

Both sides time their steps alike: a step is dispatched before the one before it is waited for, as
in the training loop, and what is counted lies between the ends of neighbouring steps.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks import workers
from benchmarks.timing import ratio
from bigjax import schema
from bigjax.config import Config

SIDES = ('bigjax', 'pytorch')
CARD = {'CUDA_VISIBLE_DEVICES': os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0]}
SHARED = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', **CARD}
ALONE = {'XLA_CLIENT_MEM_FRACTION': '.92', **CARD}
"""Of the environment: one card, and whether JAX shares it with another process."""

Rates = Callable[[Config, Mapping[str, Any], float], dict[str, float | None]]
"""(config, a side's facts, the median of its steps) -> what a script reports."""

Columns = Mapping[str, tuple[str, float, str]]
"""Of a table, by their heads: a key of the record, what it is multiplied by, and the format."""

BATCH: Columns = {'batch': ('batch_size', 1, 'd')}
PEAK: Columns = {'peak GiB': ('peak_memory_bytes', 2**-30, '.1f')}


@dataclass(frozen=True)
class Side:
    """A worker to be opened."""

    module: str
    spec: Mapping[str, Any]
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that all scripts take."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--sides', default='bigjax,pytorch', help='one of them, or both in turn')
    parser.add_argument('--batch', type=int, help='examples a step; each case has a default')
    parser.add_argument('--rounds', type=int, default=5, help='turns of each side')
    parser.add_argument('--steps', type=int, default=12, help='timed steps a turn')
    parser.add_argument('--warmup', type=int, default=10, help='steps before the first turn')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        help='a field of our config, as in model.remat=dots')  # fmt: skip
    parser.add_argument('--eager', action='store_true', help='PyTorch without torch.compile')
    parser.add_argument('--torch-python', default=sys.executable, help='the one that has torch')
    parser.add_argument('--out', type=Path, help='a file to which the lines of JSON are added')
    parser.add_argument('--smoke', action='store_true', help='a tiny model, to see that it runs')
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Sides and overrides taken apart; a smoke run is short."""
    arguments = parser.parse_args(argv)
    arguments.sides = arguments.sides.split(',')
    if unknown := set(arguments.sides) - set(SIDES):
        parser.error(f'--sides: expected some of {", ".join(SIDES)}, got {", ".join(unknown)}')
    if not all('=' in item for item in arguments.set):
        parser.error(f'--set: expected KEY=VALUE, got {arguments.set}')
    arguments.set = dict(item.split('=', 1) for item in arguments.set)
    if arguments.smoke:
        arguments.rounds, arguments.steps, arguments.warmup = 2, 2, 1
        arguments.eager = True
    return arguments


def ours(
    config: Config, arguments: argparse.Namespace, environment: Mapping[str, str] | None = None
) -> Side:
    """The training step of a config."""
    spec = {'config': schema.to_dict(config), 'warmup': arguments.warmup}
    base = SHARED if len(arguments.sides) > 1 else ALONE
    return Side('benchmarks.jax_worker', spec, environment={**base, **(environment or {})})


def theirs(spec: Mapping[str, Any], config: Config, arguments: argparse.Namespace) -> Side:
    """A model of `torch_models` with what is the same in both: the batch, the dtype, the clip."""
    same = {
        'batch_size': config.train.batch_size,
        'compute': config.precision.compute,
        'clip': config.optimizer.clip,
    }
    spec = {**same, **spec, 'compile': not arguments.eager, 'warmup': arguments.warmup}
    return Side('benchmarks.torch_worker', spec, arguments.torch_python, CARD)


def race(sides: Mapping[str, Side], rounds: int, steps: int) -> dict[str, dict[str, Any]]:
    """Each side's facts and `rounds` lists of seconds; or its error, and the others go on."""
    results: dict[str, dict[str, Any]] = {name: {'rounds': []} for name in sides}
    with ExitStack() as stack:
        open_workers = {}
        for name, side in sides.items():
            try:
                open_workers[name] = stack.enter_context(
                    workers.opened(side.module, side.spec, side.python, side.environment)
                )
            except workers.WorkerError as error:
                results[name] = {'error': str(error)}
        for _ in range(rounds):
            for name, worker in list(open_workers.items()):
                try:
                    results[name]['rounds'].append(worker.steps(steps))
                    results[name]['facts'] = worker.facts
                except workers.WorkerError as error:
                    results[name] = {'error': str(error)}
                    del open_workers[name]
    return results


def against_pytorch(
    case: str,
    config: Config,
    spec: Mapping[str, Any],
    arguments: argparse.Namespace,
    rates: Rates,
    columns: Columns,
) -> list[list[str]]:
    """One model by the sides that were asked for, in turn: emits lines, and returns rows of a table
    whose last column is the ratio. Raises: SystemExit where the sides are not one model."""
    sides = {'bigjax': ours(config, arguments), 'pytorch': theirs(spec, config, arguments)}
    chosen = {side: sides[side] for side in arguments.sides}
    results = race(chosen, arguments.rounds, arguments.steps)
    counts = {side: r['facts']['parameters'] for side, r in results.items() if 'facts' in r}
    if len(set(counts.values())) > 1:
        raise SystemExit(f'{case}: the sides have different numbers of parameters: {counts}')
    rows = []
    for side, result in results.items():
        found = {'case': case, 'side': side, 'set': arguments.set, **record(config, result, rates)}
        emit(found, arguments.out)
        rows.append([case, side, *cells(found, columns), ''])
    if ratios := compared(results):
        emit({'case': case, **ratios}, arguments.out)
        rows[-1][-1] = f'{ratios["step_seconds_ratio"]:.3f}'
    return rows


def record(config: Config, result: Mapping[str, Any], rates: Rates) -> dict[str, Any]:
    """What is kept of one side: its facts with the spread of its steps, or its error."""
    if 'error' in result:
        return {'error': result['error']}
    seconds = list(chain(*result['rounds']))
    tenths = statistics.quantiles(seconds, n=10, method='inclusive')
    spread = {
        'steps': len(seconds),
        'median': statistics.median(seconds),
        'low': min(seconds),
        'high': max(seconds),
        'p10': tenths[0],
        'p90': tenths[-1],
    }
    fixed = {'batch_size': config.train.batch_size, 'compute': config.precision.compute}
    facts = fixed | result['facts']
    return {**facts, 'step_seconds': spread, **rates(config, facts, spread['median'])}


def compared(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Median step of ours over theirs, and the median over rounds; nothing without both sides."""
    if any('rounds' not in results.get(side, {}) for side in SIDES):
        return {}
    mine, peer = (results[side]['rounds'] for side in SIDES)
    medians = [[statistics.median(turn) for turn in turns] for turns in (mine, peer)]
    whole = [statistics.median(chain(*turns)) for turns in (mine, peer)]
    return {'step_seconds_ratio': ratio(*medians), 'median_step_ratio': whole[0] / whole[1]}


def emit(record: Mapping[str, Any], out: Path | None) -> None:
    """A line of JSON at once, so that a run that is cut off leaves what it had."""
    line = json.dumps(record)
    print(line, flush=True)
    if out is not None:
        with out.open('a') as lines:
            lines.write(line + '\n')


def cells(found: Mapping[str, Any], columns: Columns) -> list[str]:
    """Of a record: milliseconds a step, or why there are none, and the columns."""
    if 'error' in found:
        return [found['error'][:80].replace('|', '/'), *('' for _ in columns)]
    step = found['step_seconds']
    values = [(found[key], scale, form) for key, scale, form in columns.values()]
    return [
        f'{step["median"] * 1e3:.4g} ({step["p10"] * 1e3:.4g} to {step["p90"] * 1e3:.4g})',
        *('unknown' if x is None else format(x * scale, form) for x, scale, form in values),
    ]
