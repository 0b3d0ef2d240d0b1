"""What it costs that nothing is lost: all guards on, and a checkpoint every 100 steps.

python -m benchmarks.guards

The same run of a decoder of 100 million parameters, with them and without, in turn. Without, it
refuses no update, saves nothing on the way and does not watch. Time over the hundred steps
from the 11th to the 110th, in which the save of the 100th begins and ends.
"""

import argparse
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax.numpy as jnp

from benchmarks.cases import NEVER, text
from benchmarks.timing import print_table, ratio, spread
from bigjax import config as configs
from bigjax.config import Config
from bigjax.train import guard
from bigjax.train.loop import train
from bigjax.train.writers import Writer, read_metrics

FIRST, LAST, SAVE = 10, 110, 100
SIZES = {False: (12, 832, 13), True: (1, 32, 2)}
"""Layers, width and heads, by whether it is only a smoke test."""


class Times(NamedTuple):
    """Seconds of the wall clock, and of processors: the latter where others want them, too."""

    wall: float
    processors: float


def config(guarded: bool, smoke: bool) -> Config:
    """The run with or without; 256 tokens a step."""
    layers, width, heads = SIZES[smoke]
    return configs.resolve(
        {
            'model': {
                'name': 'transformer',
                'layers': layers,
                'width': width,
                'heads': heads,
                'bias': False,
            },
            'task': 'language_model',
            'data': {'name': 'text', 'path': text(), 'sequence_length': 64},
            'optimizer': {'name': 'adamw', 'learning_rate': 1e-4, 'clip': 1.0},
            'train': {'batch_size': 4 if not smoke else 8, 'steps': LAST, 'log_every': FIRST},
            'eval': {'every': NEVER},
            'checkpoint': {'every': SAVE if guarded else NEVER},
            'guard': {'replicas': SAVE, 'spike': 'skip'} if guarded else {'seconds': 1e9},
        }
    )


def unguarded_step() -> mock._patch:
    """Takes every update, whatever it is."""
    verdict = jnp.int32(0)
    return mock.patch.object(
        guard, 'after_step', lambda config, before, *rest: (True, before, verdict)
    )


def seconds(guarded: bool, smoke: bool) -> Times:
    """Of a step, from one line of metrics to another."""
    used: dict[int, float] = {}
    write = Writer.metrics

    def noted(writer: Writer, step: int, values: Any) -> None:
        used.setdefault(step, time.process_time())
        write(writer, step, values)

    with (
        tempfile.TemporaryDirectory() as folder,
        nullcontext() if guarded else unguarded_step(),
        mock.patch.object(Writer, 'metrics', noted),
    ):
        train(config(guarded, smoke), Path(folder))
        at = {row['step']: row['time'] for row in read_metrics(Path(folder)) if 'train/loss' in row}
        if guarded and not smoke:
            written = (Path(folder) / 'checkpoints' / str(SAVE) / 'manifest.json').stat().st_mtime
            assert written < at[LAST], 'the save ends after what is timed'
    steps = LAST - FIRST
    return Times((at[LAST] - at[FIRST]) / steps, (used[LAST] - used[FIRST]) / steps)


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--smoke', action='store_true', help='a tiny model, to see that it runs')
    arguments = parser.parse_args(argv)
    times: dict[bool, list[Times]] = {True: [], False: []}
    for number in range(1 if arguments.smoke else arguments.rounds):
        for guarded in ((False, True), (True, False))[number % 2]:
            times[guarded].append(seconds(guarded, arguments.smoke))
    what = 'one row' if arguments.smoke else '100 M parameters, 256 tokens a step'
    rows = []
    for clock in Times._fields:
        without, with_ = ([getattr(one, clock) for one in times[g]] for g in (False, True))
        cost = f'{ratio(with_, without) - 1:.1%}'
        rows.append([f'{what}, {clock}', spread(without, 1), spread(with_, 1), cost, 'below 3 %'])
    print_table(['', 'without, s a step', 'with, s a step', 'costs', 'goal'], rows)


if __name__ == '__main__':
    main()
