"""Figures of a run: numbers in, a matplotlib `Figure` out, nothing read and nothing global kept.

House style: the palette of Okabe and Ito (2008), which survives colour blindness; a light grid, no
frame, one idea a panel. Names from data are drawn as they are: `$` starts no formula.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

BLUE, ORANGE, GREEN, PINK, SKY, BLACK = PALETTE = (
    '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#24292F',
)  # fmt: skip
GREY = '#8C959F'
DASHED = (0, (4, 3))
SPLIT_COLORS = {'train': BLUE, 'val': ORANGE, 'test': GREEN}

STYLE: Any = {
    'axes.axisbelow': True,
    'axes.edgecolor': GREY,
    'axes.grid': True,
    'axes.labelcolor': '#57606A',
    'axes.prop_cycle': cycler(color=PALETTE),
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlelocation': 'left',
    'axes.titlesize': 10.5,
    'axes.titleweight': 'bold',
    'figure.constrained_layout.use': True,
    'figure.constrained_layout.wspace': 0.06,
    'figure.constrained_layout.hspace': 0.06,
    'figure.facecolor': 'white',
    'font.size': 9.5,
    'grid.color': '#E7EAED',
    'grid.linewidth': 0.8,
    'legend.frameon': False,
    'lines.linewidth': 1.6,
    'savefig.dpi': 150,
    'text.color': BLACK,
    'text.parse_math': False,
    'xtick.color': '#57606A',
    'ytick.color': '#57606A',
}
styled = matplotlib.rc_context(STYLE)

Numbers = Sequence[float] | np.ndarray
Series = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Metrics by key such as `val/loss`: steps and values."""

SMALL_PANELS = {
    'train/learning_rate': 'learning rate',
    'perf/tokens_per_second': 'tokens a second',
    'perf/examples_per_second': 'examples a second',
}
LOG_RANGE = 30  # largest over smallest loss, from which a log axis reads better
ANNOTATED_CLASSES = 20  # up to here each cell of a confusion matrix has room for its numbers
LISTED_CLASSES = 30
NAMED_CURVES = 5


@styled
def save(figure: Figure, path: Path) -> None:
    """Write `figure` as PNG."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing')  # class names in any script
        figure.savefig(path, format='png')


@styled
def learning_curves(series: Series, results: Mapping[str, float] | None = None) -> Figure:
    """Loss and each metric of val over steps, train and val on one axis; below, small, the
    learning rate and the throughput. `results` (keys `test/...`) are marked at the end."""
    names = [key.partition('/')[2] for key in series if key.startswith('val/')]
    main = ['loss', *(name for name in names if name != 'loss')]
    small = [key for key in SMALL_PANELS if key in series][:2]
    layout = [*_pairs(main), *_pairs(small)]
    heights = [2.9] * len(_pairs(main)) + [1.7] * len(_pairs(small))
    figure = Figure(figsize=(9.2, sum(heights)))
    axes = figure.subplot_mosaic(layout, height_ratios=heights)
    for name in main:
        _metric_panel(axes[name], name, series, results or {})
    for key in small:
        ax = axes[key]
        ax.plot(*series[key], color=GREY, linewidth=1.3)
        ax.set_title(SMALL_PANELS[key], fontsize=9, fontweight='normal')
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.yaxis.set_major_formatter(
            EngFormatter(sep=' ') if key.startswith('perf/') else FuncFormatter(_plain)
        )
        _step_axis(ax)
    return figure


def _pairs(names: Sequence[str]) -> list[Any]:
    """Rows of two panels; the last, if alone, takes its whole row."""
    return [[*names[i : i + 2], names[-1]][:2] for i in range(0, len(names), 2)]


def _metric_panel(ax: Axes, name: str, series: Series, results: Mapping[str, float]) -> None:
    values = []
    for split in ('train', 'val'):
        if (key := f'{split}/{name}') in series:
            steps, ys = series[key]
            dots = 'o' if len(steps) < 40 else ''
            ax.plot(steps, ys, color=SPLIT_COLORS[split], marker=dots, markersize=3, label=split)
            values.append(ys)
    if (result := results.get(f'test/{name}')) is not None and values:
        last = max(series[key][0][-1] for key in series if key.endswith(f'/{name}'))
        ax.plot([last], [result], 'D', color=SPLIT_COLORS['test'], markersize=6, label='test')
        values.append(np.array([result]))
    every = np.concatenate(values) if values else np.array([])
    every = every[np.isfinite(every)]
    if name == 'loss' and every.size and every.min() > 0 and every.max() > LOG_RANGE * every.min():
        ax.set_yscale('log')
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(FuncFormatter(_plain))
    ax.set_title(name)
    if values:
        ax.legend()
    _step_axis(ax)


def _plain(value: float, _: int | None) -> str:
    return f'{value:,g}'


def _step_axis(ax: Axes) -> None:
    ax.set_xlabel('step')
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.xaxis.set_major_formatter(EngFormatter(sep=' '))


@styled
def confusion_matrix(counts: np.ndarray, class_names: Sequence[str] = ()) -> Figure:
    """Counts [C, C], a row a target and a column a prediction, shaded by the share of the row."""
    counts = np.asarray(counts)
    size = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.9 + 0.33 * size, 2.4, 8))
    figure = Figure(figsize=(side + 1.1, side + 0.6))
    ax = figure.add_subplot()
    # The square root lets rare confusions show beside a diagonal near 1.
    image = ax.imshow(shares, cmap='Blues', norm=PowerNorm(0.5, vmin=0, vmax=1))
    ticks = range(0, size, -(-size // LISTED_CLASSES))
    labels = [_short(name) for name in _names(class_names, size)]
    widest = 0.085 * max(len(labels[tick]) for tick in ticks)  # inches, about
    upright = 90 if widest > side / len(ticks) else 0
    ax.set_xticks(ticks, [labels[tick] for tick in ticks], rotation=upright)
    ax.set_yticks(ticks, [labels[tick] for tick in ticks])
    ax.set(xlabel='prediction', ylabel='target')
    ax.grid(visible=False)
    ax.tick_params(length=0)
    if size > ANNOTATED_CLASSES:
        bar = figure.colorbar(image, shrink=0.7, pad=0.02, format=PercentFormatter(1))
        bar.set_label('share of the target')
        return figure
    font = min(9.0, 72 * side / size / 4.2)
    for row, column in zip(*np.nonzero(counts), strict=True):
        share = shares[row, column]
        percent = f'{share:.0%}' if share >= 0.005 else '<1%'
        text = f'{counts[row, column]:,.0f}\n{percent}'
        color = 'white' if share > 0.4 else BLACK
        ax.text(column, row, text, ha='center', va='center', color=color, fontsize=font)
    for edge in np.arange(0.5, size - 1):
        ax.axhline(edge, color='white', linewidth=1)
        ax.axvline(edge, color='white', linewidth=1)
    return figure


@styled
def roc_curve(curves: Mapping[str, Mapping[str, Numbers]]) -> Figure:
    """True against false positive rate of each curve {name: {fpr, tpr}}, with the area under it."""
    figure, ax = _square('false positive rate', 'true positive rate')
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=DASHED)
    points = {name: (curve['fpr'], curve['tpr']) for name, curve in curves.items()}
    areas = {name: float(np.trapezoid(tpr, fpr)) for name, (fpr, tpr) in points.items()}
    _ranked_curves(ax, points, areas, 'AUC', 'lower right')
    return figure


@styled
def precision_recall(curves: Mapping[str, Mapping[str, Numbers]]) -> Figure:
    """Precision against recall of each curve {name: {precision, recall}}, recall falling, with its
    average precision: the sum of precision times the step in recall, as scikit-learn has it."""
    figure, ax = _square('recall', 'precision')
    points = {name: (curve['recall'], curve['precision']) for name, curve in curves.items()}
    averages = {
        name: float(-np.diff(recall) @ np.asarray(precision)[:-1])
        for name, (recall, precision) in points.items()
    }
    _ranked_curves(ax, points, averages, 'AP', 'lower left')
    return figure


def _ranked_curves(
    ax: Axes,
    points: Mapping[str, tuple[Numbers, Numbers]],
    scores: Mapping[str, float],
    score_name: str,
    legend: Literal['lower left', 'lower right'],
) -> None:
    """The worst few in colour and by name; in a crowd the others stay in the background."""
    worst = sorted(scores, key=lambda name: scores[name])[:NAMED_CURVES]
    for name in points.keys() - set(worst):
        ax.plot(*points[name], color=GREY, linewidth=0.7, alpha=0.6)
    for color, name in zip(PALETTE, worst, strict=False):
        label = f'{score_name} {scores[name]:.3f}  {_short(name)}'.rstrip()
        ax.plot(*points[name], color=color, label=label)
    title = f'lowest {len(worst)} of {len(points)}' if len(worst) < len(points) else None
    ax.legend(loc=legend, title=title, alignment='left')


@styled
def calibration(confidence: Numbers, accuracy: Numbers, count: Numbers) -> Figure:
    """A reliability diagram: by bin, mean confidence against accuracy; below, examples a bin."""
    used = np.asarray(count) > 0
    xs, ys, counts = (np.asarray(values, float)[used] for values in (confidence, accuracy, count))
    figure = Figure(figsize=(4.2, 5.0))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=DASHED)
    upper.plot(xs, ys, marker='o', markersize=4, color=BLUE)
    upper.set(ylabel='accuracy', ylim=(-0.02, 1.02), xlim=(-0.02, 1.02))
    lower.bar(xs, counts, width=0.03, color=GREY)
    lower.set(xlabel='confidence', ylabel='examples')
    lower.yaxis.set_major_formatter(EngFormatter(sep=' '))
    lower.yaxis.set_major_locator(MaxNLocator(2))
    return figure


@styled
def per_class_bars(scores: Numbers, class_names: Sequence[str] = (), label: str = 'F1') -> Figure:
    """A score in [0, 1] of each class, the lowest first; of many classes only the lowest."""
    scores = np.asarray(scores, float)
    names = _names(class_names, len(scores))
    worst = np.argsort(scores, kind='stable')[:LISTED_CLASSES]
    figure = Figure(figsize=(4.6, 0.9 + 0.24 * len(worst)))
    ax = figure.add_subplot()
    bars = ax.barh(range(len(worst)), scores[worst], color=BLUE, height=0.65)
    ax.bar_label(bars, fmt='{:.3f}', padding=3, fontsize=8.5)
    ax.set_yticks(range(len(worst)), [_short(names[index]) for index in worst])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.12)
    ax.set_xticks(np.linspace(0, 1, 6))
    ax.grid(visible=False, axis='y')
    few = f', lowest {len(worst)} of {len(scores)}' if len(worst) < len(scores) else ''
    ax.set_xlabel(f'{label}{few}')
    return figure


@styled
def predicted_vs_actual(actual: Numbers, predicted: Numbers) -> Figure:
    """Predictions of a regression against the truth, both in the target's own unit."""
    xs, ys = np.ravel(actual).astype(float), np.ravel(predicted).astype(float)
    low, high = float(min(xs.min(), ys.min())), float(max(xs.max(), ys.max()))
    margin = 0.04 * (high - low or 1)
    figure = Figure(figsize=(4.4, 4.4))
    ax = figure.add_subplot()
    ax.axline(
        (low, low), (high + margin, high + margin), color=BLACK, linewidth=1, linestyle=DASHED
    )
    alpha = float(np.clip(200 / len(xs), 0.05, 0.7))
    ax.scatter(xs, ys, s=16, color=BLUE, alpha=alpha, linewidths=0, rasterized=True)
    limits = (low - margin, high + margin)
    ax.set(xlabel='actual', ylabel='predicted', xlim=limits, ylim=limits, aspect='equal')
    return figure


@styled
def sample_grid(samples: Sequence[Mapping[str, Any]], columns: int = 8) -> Figure:
    """Images with what was predicted, and the target where they differ."""
    samples = [sample for sample in samples if sample['input']['kind'] == 'image']
    columns = min(columns, len(samples))
    rows = -(-len(samples) // columns)
    figure = Figure(figsize=(1.25 * columns, 1.6 * rows))
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for ax in axes:
        ax.axis('off')
    for ax, sample in zip(axes, samples, strict=False):
        ax.imshow(pixels(sample['input']), cmap='gray', vmin=0, vmax=255)
        wrong = sample.get('target') not in (None, sample['prediction'])
        title = _short(sample['prediction'], 14)
        title += f'\nis {_short(sample["target"], 11)}' if wrong else ''
        ax.set_title(title, fontsize=8, loc='center', color=ORANGE if wrong else BLACK)
    return figure


def pixels(image: Mapping[str, Any]) -> np.ndarray:
    """The pixels of an image sample, uint8, [H, W, 3] or, of a grey one, [H, W]."""
    array = np.asarray(image['pixels'], np.uint8)
    return array[..., :3] if array.shape[-1] >= 3 else array[..., 0]


def _square(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, 4.4))
    ax = figure.add_subplot()
    ax.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect='equal')
    return figure, ax


def _names(class_names: Sequence[str], size: int) -> Sequence[str]:
    return class_names if len(class_names) == size else [str(index) for index in range(size)]


def _short(name: str, limit: int = 18) -> str:
    """One line of at most `limit` characters that a font can draw."""
    name = ''.join(char if char.isprintable() else ' ' for char in name).strip()
    return name if len(name) <= limit else name[: limit - 1] + '…'
