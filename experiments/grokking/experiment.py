"""Train accuracy is perfect long before test accuracy moves."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bigjax.config_file import load
from bigjax.study import plots
from bigjax.train.loop import train
from bigjax.train.writers import read_metrics

HERE = Path(__file__).parent
PRIME, FRACTION = 113, 0.3
LEARNED, GENERALISED = 0.999, 0.99


def measure(study: Path, smoke: bool, data: Path | None) -> list[dict]:
    """Steps at which train and test accuracy arrive, and both over the run; no data is needed."""
    table = addition(PRIME, FRACTION)
    np.savez(study / 'addition.npz', **table)
    overrides = [('data.path', str((study / 'addition.npz').resolve()))]
    if smoke:
        overrides += [('train.steps', '6'), ('eval.every', '3'), ('model.width', '16')]
        overrides += [('train.batch_size', '3824')]  # which eight devices can share
        overrides += [('optimizer.schedule.warmup', '1'), ('train.log_every', '1')]
    train(load(str(HERE / 'config.py'), overrides), study / 'run')
    lines = read_metrics(study / 'run')
    curves = [
        {'quantity': f'{split} accuracy', 'value': line[f'{split}/accuracy'], 'step': line['step']}
        for line in lines
        for split in ('train', 'val')
        if f'{split}/accuracy' in line
    ]
    return curves if smoke else curves + arrivals(curves)


def addition(prime: int, fraction: float) -> dict[str, np.ndarray]:
    """Rows `a b =` and their sum modulo `prime`, all pairs, a fraction of them to train on."""
    pairs = np.array([(a, b, prime) for a in range(prime) for b in range(prime)], np.int32)
    order = np.random.default_rng(0).permutation(len(pairs))
    pairs, edge = pairs[order], int(fraction * len(pairs))
    sums = (pairs[:, 0] + pairs[:, 1]) % prime
    parts = {'train': slice(0, edge), 'val': slice(edge, None)}
    return {f'x_{name}': pairs[part] for name, part in parts.items()} | {
        f'y_{name}': sums[part] for name, part in parts.items()
    }


def arrivals(curves: list[dict]) -> list[dict]:
    """The first steps of perfect training and of 99 % on the rest, and how many times later."""
    learned = first(curves, 'train', LEARNED)
    generalised = first(curves, 'val', GENERALISED)
    values = {
        'step of 100 % train accuracy': learned,
        'step of 99 % test accuracy': generalised,
        'delay': generalised / learned,
        'test accuracy at the end': [
            row['value'] for row in curves if row['quantity'] == 'val accuracy'
        ][-1],
    }
    return [{'quantity': name, 'value': float(value)} for name, value in values.items()]


def first(curves: list[dict], split: str, accuracy: float) -> float:
    """The first step at which the split's accuracy is reached; infinity if it never is."""
    steps = (
        row['step']
        for row in curves
        if row['quantity'] == f'{split} accuracy' and row['value'] >= accuracy
    )
    return next(steps, float('inf'))


def draw(results: list[dict], figure: Figure) -> None:
    figure.set_size_inches(6.2, 3.6)
    axes = figure.subplots()
    for split, name, colour in (('train', 'train', plots.BLUE), ('val', 'test', plots.ORANGE)):
        rows = [row for row in results if row['quantity'] == f'{split} accuracy']
        steps, values = [row['step'] for row in rows], [row['value'] for row in rows]
        axes.plot(steps, values, color=colour, label=name)
    axes.set(title='accuracy, addition modulo 113', xlabel='step', ylim=(-0.02, 1.02))
    plots.log_scale(axes, 'x')
    axes.legend(loc='center left')
