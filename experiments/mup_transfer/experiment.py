"""Does the best learning rate stay where it is as the width grows? Tensor Programs V, figures 1, 5.

muP and SP are the same model at the base's width, so its runs stand for both.
"""

import argparse
import itertools
import math
from pathlib import Path

from matplotlib.figure import Figure

from bigjax import config_file
from bigjax.config_file import format_value
from bigjax.errors import ConfigError
from bigjax.study import coordinates, jobs, ledger, plots, sweep

HERE = Path(__file__).parent
BASE, WIDE = 64, 512
HEAD = 64
RATES = {  # powers of two, around each width's best
    'mup': {64: range(-11, -5), 128: range(-11, -6), 256: range(-11, -6), 512: range(-10, -7)},
    'sp': {128: (-10, -9), 256: (-11, -10, -9), 512: (-12, -11, -9)},
}
SMOKE = {'mup': {64: [-9], 128: [-9]}, 'sp': {128: [-10, -9]}}
CHECKED = (128, 256, 512, 1024)
"""Widths of the coordinate check."""


def points(smoke=False):
    """Rates around the best one of each width; the base's once."""
    tiny = {'train.steps': 3, 'train.batch_size': 8, 'data.sequence_length': 16} if smoke else {}
    return [
        {**_sized(width), 'parametrization.name': name, 'optimizer.learning_rate': 2.0**power}
        | tiny
        for name, widths in (SMOKE if smoke else RATES).items()
        for width, powers in widths.items()
        for power in powers
    ]


def measure(study, smoke, data):
    """Losses after training, what they say of transfer, and the coordinate check."""
    path = _text(smoke, data)
    planned = jobs.plan(points(smoke), HERE, [('data.path', str(path))])
    rows = [_row(run) for run in sweep.finish(planned, study, results=ledger.RESULTS)]
    rows += [row | {'parametrization': 'sp'} for row in rows if row['width'] == BASE]
    return rows + _transfer(rows) + _coordinates(path, smoke)


def draw(rows, figure: Figure):
    """Loss against rate, width by width, under SP and muP; and the logits' change."""
    figure.set_size_inches(9.6, 3.2)
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 1))
    losses = [row for row in rows if row['quantity'] == 'loss']
    colors = dict(zip(sorted({row['width'] for row in losses}), plots.GROUP_COLORS, strict=False))
    for ax, name in zip(panels, ('sp', 'mup'), strict=False):
        for width, color in colors.items():
            curve = _curve(losses, name, width)
            ax.plot(list(curve), list(curve.values()), color=color, marker='.', label=f'{width}')
        ax.set_title({'sp': 'SP', 'mup': 'muP'}[name])
        ax.set_xlabel('log2 of the learning rate')
        ax.set_ylim(min(row['value'] for row in losses) - 0.03, _ceiling(losses))
    panels[0].set_ylabel('val loss')
    panels[0].legend(title='width')
    for name, color in (('sp', plots.ORANGE), ('mup', plots.BLUE)):
        found = {row['width']: row['value'] for row in rows if row['quantity'] == f'{name} output'}
        label = {'sp': 'SP', 'mup': 'muP'}[name]
        panels[2].plot(list(found), list(found.values()), color=color, marker='.', label=label)
    plots.log_scale(panels[2], 'x', 'y')
    panels[2].set_xticks(list(found), list(map(str, found)))
    panels[2].set_xticks([], minor=True)
    panels[2].set_xlabel('width')
    panels[2].set_title('change of the logits, step 1')
    panels[2].legend()


def _sized(width):
    return {'model.width': width, 'model.heads': width // HEAD}


def _text(smoke, data):
    if data is None and smoke:
        return Path(argparse.__file__)  # any text does
    if data is None:
        raise ConfigError('mup_transfer: expected --data=DIR with tinyshakespeare.txt, or a file')
    return data / 'tinyshakespeare.txt' if data.is_dir() else data


def _row(run):
    given = run['overrides']
    return {
        'quantity': 'loss',
        'value': run['metrics']['val/loss'] if run['event'] == 'finished' else math.inf,
        'parametrization': given['parametrization.name'],
        'width': given['model.width'],
        'log2_rate': round(math.log2(given['optimizer.learning_rate'])),
    }


def _curve(rows, name, width):
    """From the logarithm of the rate to the loss."""
    found = [row for row in rows if (row['parametrization'], row['width']) == (name, width)]
    return {row['log2_rate']: row['value'] for row in sorted(found, key=lambda r: r['log2_rate'])}


def _transfer(rows):
    widths = sorted({row['width'] for row in rows})
    curves = {name: {w: _curve(rows, name, w) for w in widths} for name in ('mup', 'sp')}
    best = {
        name: {w: min(curve, key=curve.__getitem__) for w, curve in of.items()}
        for name, of in curves.items()
    }
    found = [
        {
            'quantity': f'{label}: bins from the best rate at width {BASE}',
            'value': max(abs(rate - best[name][BASE]) for rate in best[name].values()),
        }
        for name, label in (('mup', 'muP'), ('sp', 'SP'))
    ]
    worse = {
        (wide, rate): curves['mup'][wide][rate] - loss
        for narrow, wide in itertools.pairwise(widths)
        for rate, loss in curves['mup'][narrow].items()
        if rate in curves['mup'][wide]
    }
    upto = [change for (_, rate), change in worse.items() if rate <= best['mup'][BASE]]
    wider = 'muP: how much worse a wider model is'
    found += [
        {'quantity': f'{wider}, up to the best rate', 'value': max(upto)},
        {'quantity': f'{wider}, at any rate', 'value': max(worse.values())},
    ]
    rate, wide = best['mup'][BASE], widths[-1]
    return [
        *found,
        {
            'quantity': f"loss at width {wide} with width {BASE}'s rate: SP less muP",
            'value': curves['sp'][wide][rate] - curves['mup'][wide][rate],
        },
    ]


def _coordinates(path, smoke):
    rows = []
    for name, label in (('mup', 'muP'), ('sp', 'SP')):
        fields = {
            'parametrization.name': name,
            'data.path': str(path),
            'data.sequence_length': 16 if smoke else 64,
        }
        flags = [(key, format_value(value)) for key, value in fields.items()]
        config = config_file.load(str(HERE / 'config.py'), flags)
        sized = coordinates.widened(config, CHECKED[:2] if smoke else CHECKED)
        moved = coordinates.measure(sized, 1 if smoke else 4, 1 if smoke else 2, lambda _: None)
        slopes = coordinates.slopes(moved)
        rows += [
            {'quantity': f'{name} output', 'value': row['delta'], 'width': row['size']}
            for row in moved
            if (row['name'], row['step'], row['seed']) == ('output', 1, 0)
        ]
        if name == 'mup':
            steepest = abs(coordinates.judge(slopes).slope)
            quantity = f'{label}: steepest slope of the coordinate check'
            rows.append({'quantity': quantity, 'value': steepest})
        else:
            rows.append({'quantity': f'{label}: slope of the output', 'value': slopes['output'][1]})
    return rows


def _ceiling(losses):
    """The largest loss at the base's width, where no rate that was tried is far off."""
    return max(row['value'] for row in losses if row['width'] == BASE) + 0.05
