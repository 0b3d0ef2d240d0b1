"""An MLP and a convolutional network on Fashion-MNIST, three seeds each."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from bigjax.data import idx
from bigjax.study import jobs, plots, sweep
from bigjax.study.points import Point, grid

HERE = Path(__file__).parent
DATA = Path('/usr/share/datasets/fashion-mnist')
"""Where Debian's dataset-fashion-mnist puts its files."""
MODELS = {'mlp': 'config.py:mlp', 'conv': 'config.py:conv'}


def points(smoke: bool) -> list[Point]:
    seeds = range(1 if smoke else 3)
    tiny = {'train.epochs': 1, 'model.widths': (8,)} if smoke else {}
    names = ['mlp'] if smoke else list(MODELS)
    return [{**point, **tiny} for point in grid({'config': map(MODELS.get, names), 'seed': seeds})]


def measure(study: Path, smoke: bool, data: Path | None) -> list[dict]:
    """Test accuracy by model and seed. data: the folder of the four IDX files."""
    arrays = read(data or DATA, 400 if smoke else None)
    paths = {'mlp': study / 'standardised.npz', 'conv': study / 'pixels.npz'}
    np.savez(paths['mlp'], **standardised(arrays))
    np.savez(paths['conv'], **arrays)
    planned = [
        job
        for name, path in paths.items()
        for job in jobs.plan(
            [point for point in points(smoke) if point['config'] == MODELS[name]],
            HERE,
            [('data.path', str(path.resolve()))],
        )
    ]
    rows = sweep.finish(planned, study, console=Console())
    return [
        {
            'quantity': f'{row["config"].rpartition(":")[2]} test accuracy',
            'value': row['metrics']['test/accuracy'],
            'seed': row['overrides']['seed'],
        }
        for row in rows
    ]


def read(folder: Path, limit: int | None) -> dict[str, np.ndarray]:
    """uint8 images [N, 28, 28] and labels [N] of train and test."""
    return {
        f'{letter}_{split}': idx.read(folder / f'{name}.gz', ndim)[:limit]
        for split, names in idx.MNIST.items()
        for letter, name, ndim in zip('xy', names, ((3,), (1,)), strict=True)
    }


def standardised(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each pixel less its mean over train, by its deviation, as the benchmark's runner does."""
    train = arrays['x_train'].reshape(len(arrays['x_train']), -1)
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    deviation[deviation == 0] = 1
    inputs = {
        name: ((arrays[name].reshape(len(arrays[name]), -1) - mean) / deviation).astype(np.float32)
        for name in ('x_train', 'x_test')
    }
    return arrays | inputs


def draw(results: list[dict], figure: Figure) -> None:
    figure.set_size_inches(4.6, 3.6)
    axes = figure.subplots()
    names = list(dict.fromkeys(row['quantity'] for row in results))
    paper = {'mlp test accuracy': 0.871, 'conv test accuracy': 0.907}
    for place, name in enumerate(names):
        values = [row['value'] for row in results if row['quantity'] == name]
        label = None if place else 'ours'
        axes.plot([place] * len(values), values, 'o', color=plots.BLUE, label=label)
        ends, label = (place - 0.2, place + 0.2), None if place else 'table'
        axes.hlines(paper[name], *ends, color=plots.ORANGE, label=label)
    axes.set(xticks=range(len(names)), xticklabels=names, xlim=(-0.6, len(names) - 0.4))
    axes.set(title='test accuracy')
    axes.legend(loc='upper left')
