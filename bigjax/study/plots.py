"""Figures of a run: numbers in, a matplotlib `Figure` out, nothing read and nothing global kept.

House style (plots.mplstyle): colours of Okabe and Ito (2008), which survive colour blindness; a
light grid, no frame, one idea a panel; names from data drawn as they are: `$` starts no formula.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN = '#0072B2', '#D55E00', '#009E73'
BLACK, GREY = '#24292F', '#8C959F'
DASHED = (0, (4, 3))
GROUP_COLORS = (BLUE, ORANGE, GREEN, '#CC79A7', '#E69F00', '#56B4E9', BLACK)
SPLIT_COLORS = {'train': BLUE, 'val': ORANGE, 'test': GREEN}

styled = matplotlib.rc_context(fname=Path(__file__).with_name('plots.mplstyle'))

Numbers = Sequence[float] | np.ndarray
Series = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Metrics by key such as `val/loss`: steps and values."""

DPI = 150
SMALL_PANELS = {
    'train/learning_rate': 'learning rate',
    'perf/tokens_per_second': 'tokens a second',
    'perf/examples_per_second': 'examples a second',
}
LOG_RANGE = 30  # largest over smallest loss, from which a log axis reads better
ANNOTATED_CLASSES = 20  # up to here each cell of a confusion matrix has room for its numbers
LISTED_CLASSES = 30


@styled
def save(figure: Figure, path: Path) -> None:
    """Write `figure` as PNG."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing')  # class names in any script
        figure.savefig(path, format='png', dpi=DPI)


def log_scale(axes: Axes, *which: Literal['x', 'y']) -> None:
    """Logarithmic axes with plain numbers; with twos and fives where they span few decades."""
    for name in which:
        axes.set(**{f'{name}scale': 'log'})
        axis = {'x': axes.xaxis, 'y': axes.yaxis}[name]
        axis.set_major_formatter('{x:,g}')
        axis.set_minor_formatter(ticker.FuncFormatter(partial(_between_decades, axis)))


def _between_decades(axis: Axis, value: float, _: int | None) -> str:
    low, high = axis.get_view_interval()
    return f'{value:,g}' if high < 300 * low and f'{value:e}'[0] in '25' else ''


@styled
def learning_curves(series: Series, results: Mapping[str, float] | None = None) -> Figure:
    """Loss and each metric of val over steps, train and val on one axis; below, small, the
    learning rate and the throughput. `results` (keys `test/...`) are marked at the end."""
    names = [key.partition('/')[2] for key in series if key.startswith('val/')]
    main = _pairs(['loss', *(name for name in names if name != 'loss')])
    small = _pairs([key for key in SMALL_PANELS if key in series][:2])
    heights = [2.9] * len(main) + [1.7] * len(small)
    figure = Figure(figsize=(9.2, sum(heights)))
    for name, ax in figure.subplot_mosaic([*main, *small], height_ratios=heights).items():
        ax.yaxis.set_major_formatter('{x:,g}')
        ax.set_xlabel('step')
        ax.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
        ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=' '))
        if name not in SMALL_PANELS:
            _metric_panel(ax, name, series, results or {})
            continue
        ax.plot(*series[name], color=GREY, linewidth=1.3)
        ax.set_title(SMALL_PANELS[name], fontsize=9, fontweight='normal')
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_locator(ticker.MaxNLocator(3))
        if name.startswith('perf/'):
            ax.yaxis.set_major_formatter(ticker.EngFormatter(sep=' '))
    return figure


def _pairs(names: Sequence[str]) -> list[Any]:
    """Rows of two panels; the last, if alone, takes its whole row."""
    return [[*names[i : i + 2], names[-1]][:2] for i in range(0, len(names), 2)]


def _metric_panel(ax: Axes, name: str, series: Series, results: Mapping[str, float]) -> None:
    keys = {split: f'{split}/{name}' for split in SPLIT_COLORS}
    curves = {split: series[key] for split, key in keys.items() if key in series}
    if curves and keys['test'] in results:
        last = max(steps[-1] for steps, _ in curves.values())
        curves['test'] = np.array([last]), np.array([results[keys['test']]])
    for split, (steps, values) in curves.items():
        marker = 'D' if split == 'test' else 'o' if len(steps) < 40 else ''
        size = 6 if split == 'test' else 3
        color = SPLIT_COLORS[split]
        ax.plot(steps, values, color=color, marker=marker, markersize=size, label=split)
    every = np.concatenate([np.ones(0), *(values for _, values in curves.values())])
    every = every[np.isfinite(every)]
    if name == 'loss' and every.size:
        _log_where_wide(ax, every.min(), every.max())
    ax.set_title(name)
    if curves:
        ax.legend()


@styled
def overlaid(groups: Mapping[str, Sequence[Series]]) -> Figure:
    """The train loss and each metric of val, a line a group: the mean of its runs, in a band from
    the lowest to the highest."""
    keys = dict.fromkeys(key for runs in groups.values() for series in runs for key in series)
    names = [key for key in keys if key == 'train/loss' or key.startswith('val/')]
    names.sort(key=lambda key: not key.endswith('/loss'))
    rows = _pairs(names)
    few = len(groups) <= len(GROUP_COLORS)
    shades = matplotlib.colormaps['viridis'](np.linspace(0, 0.92, len(groups)))
    colors = GROUP_COLORS if few else shades
    figure = Figure(figsize=(9.2, 2.9 * len(rows) + 0.25 * len(groups) / 3))
    for name, ax in figure.subplot_mosaic(rows).items():
        firsts = []
        for (label, runs), color in zip(groups.items(), colors, strict=False):
            curves = [series[name] for series in runs if name in series]
            if curves:
                steps, low, mean, high = _band(curves)
                firsts.append(mean[0])
                marker = 'o' if len(steps) < 40 else ''
                ax.plot(steps, mean, color=color, label=label, marker=marker, markersize=3)
                ax.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        if name.endswith('/loss'):
            _loss_axis(ax, float(np.median(firsts)))
        ax.set(title=name, xlabel='step')
        ax.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
        ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=' '))
    handles = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
    if len(groups) <= LISTED_CLASSES:
        figure.legend(handles.values(), handles, loc='outside lower center', ncols=3, fontsize=8)
    return figure


def _band(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """Steps, and there the lowest, the mean and the highest of the curves that reach so far."""
    steps = np.unique(np.concatenate([steps for steps, _ in curves]))
    values = [np.interp(steps, *curve, left=np.nan, right=np.nan) for curve in curves]
    masked = np.ma.masked_invalid(values)
    found = (masked.min(axis=0), masked.mean(axis=0), masked.max(axis=0))
    return steps, *(np.ma.filled(line, np.nan) for line in found)


def _loss_axis(ax: Axes, first: float) -> None:
    """Up to twice the first loss: what diverges would hide the rest."""
    low, high = ax.dataLim.intervaly
    if first < high / 2:
        high = 2 * first
        ax.set_ylim(top=high)
    _log_where_wide(ax, low, high)


def _log_where_wide(ax: Axes, low: float, high: float) -> None:
    if low > 0 and high > LOG_RANGE * low:
        ax.set_yscale('log')
        ax.yaxis.set_minor_formatter(ticker.NullFormatter())
        ax.yaxis.set_major_formatter('{x:,g}')


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
        bar = figure.colorbar(image, shrink=0.7, pad=0.02, format=ticker.PercentFormatter(1))
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
def roc_curve(fpr: Numbers, tpr: Numbers) -> Figure:
    """True against false positive rate, with the area under the curve."""
    figure, ax = _square('false positive rate', 'true positive rate')
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=DASHED)
    ax.plot(fpr, tpr, color=BLUE, label=f'AUC {np.trapezoid(tpr, fpr):.3f}')
    ax.legend(loc='lower right')
    return figure


@styled
def precision_recall(precision: Numbers, recall: Numbers) -> Figure:
    """Precision against recall, recall falling, with the average precision: the sum of precision
    times the step in recall, as scikit-learn has it."""
    figure, ax = _square('recall', 'precision')
    average = -np.diff(recall) @ np.asarray(precision)[:-1]
    ax.plot(recall, precision, color=BLUE, label=f'AP {average:.3f}')
    ax.legend(loc='lower left')
    return figure


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
    lower.yaxis.set_major_formatter(ticker.EngFormatter(sep=' '))
    lower.yaxis.set_major_locator(ticker.MaxNLocator(2))
    return figure


@styled
def per_class_bars(scores: Numbers, class_names: Sequence[str] = ()) -> Figure:
    """F1 of each class, the lowest first; of many classes only the lowest."""
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
    few = len(worst) < len(scores)
    ax.set_xlabel(f'F1, lowest {len(worst)} of {len(scores)}' if few else 'F1')
    return figure


@styled
def predicted_vs_actual(actual: Numbers, predicted: Numbers) -> Figure:
    """Predictions of a regression against the truth, both in the target's own unit."""
    xs, ys = np.ravel(actual).astype(float), np.ravel(predicted).astype(float)
    low, high = float(min(xs.min(), ys.min())), float(max(xs.max(), ys.max()))
    margin = 0.04 * (high - low or 1)
    figure = Figure(figsize=(4.4, 4.4))
    ax = figure.add_subplot()
    ax.axline((low, low), slope=1, color=BLACK, linewidth=1, linestyle=DASHED)
    alpha = float(np.clip(200 / len(xs), 0.05, 0.7))
    ax.scatter(xs, ys, s=16, color=BLUE, alpha=alpha, linewidths=0, rasterized=True)
    limits = (low - margin, high + margin)
    ax.set(xlabel='actual', ylabel='predicted', xlim=limits, ylim=limits, aspect='equal')
    return figure


def _square(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, 4.4))
    ax = figure.add_subplot()
    ax.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect='equal')
    return figure, ax


def _names(class_names: Sequence[str], size: int) -> Sequence[str]:
    return class_names if len(class_names) == size else [str(index) for index in range(size)]


def _short(name: str) -> str:
    """One line of at most 18 characters that a font can draw."""
    name = ''.join(char if char.isprintable() else ' ' for char in name).strip()
    return name if len(name) <= 18 else name[:17] + '…'
