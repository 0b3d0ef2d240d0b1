"""Figures of scaling laws in the house style: losses by budget, frontier, residuals, valleys."""

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from bigjax.study.fits.held_out import Tested
from bigjax.study.fits.law import Law
from bigjax.study.fits.result import LEVEL, Fit
from bigjax.study.fits.table import Runs, budgets, join
from bigjax.study.plots import BLACK, BLUE, GREY, ORANGE, styled

SHADES = matplotlib.colormaps['viridis']
BEYOND = 10.0  # how far past the largest budget the frontier is drawn
MOST_CURVES = 20  # of a law, one a budget


@styled
def overview(tested: Tested) -> Figure:
    """Losses by budget, N* and L* over budgets, residuals."""
    figure = Figure(figsize=(10, 7.4))
    panels = figure.subplots(2, 2)
    _losses(panels[0, 0], tested)
    _frontier(panels[0, 1], tested, 'params')
    _frontier(panels[1, 1], tested, 'loss')
    _residuals(panels[1, 0], tested)
    return figure


@styled
def isoflops(tested: Tested) -> Figure:
    """Loss against N, a colour a budget, with the fit's curve and its minimum."""
    figure = Figure(figsize=(5.6, 4.2))
    _losses(figure.add_subplot(), tested)
    return figure


@styled
def frontier(tested: Tested) -> Figure:
    """N* and L* against C in their bands, with what was measured; what was held out is hollow."""
    figure = Figure(figsize=(10, 4.0))
    for ax, what in zip(figure.subplots(1, 2), ('params', 'loss'), strict=True):
        _frontier(ax, tested, what)
    return figure


@styled
def residuals(tested: Tested) -> Figure:
    """Measured less fitted log loss against C; what was held out is hollow."""
    figure = Figure(figsize=(5.6, 3.6))
    _residuals(figure.add_subplot(), tested)
    return figure


@styled
def valleys(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], bottoms: Mapping[str, float]
) -> Figure:
    """Loss against learning rate, a line a label (a width), with the bottom of each valley."""
    figure = Figure(figsize=(5.6, 4.0))
    ax = figure.add_subplot()
    colors = SHADES(np.linspace(0, 0.9, len(curves)))
    for (label, (rates, loss)), color in zip(curves.items(), colors, strict=True):
        order = np.argsort(rates)
        ax.plot(rates[order], loss[order], color=color, marker='o', markersize=3, label=label)
        if label in bottoms:
            ax.axvline(bottoms[label], color=color, linewidth=0.9, linestyle=(0, (4, 3)))
    _log(ax, 'x')
    ax.set(xlabel='learning rate', ylabel='loss, nats')
    ax.legend()
    return figure


def _losses(ax: Axes, tested: Tested) -> None:
    every = _every(tested)
    flops, which = budgets(every.flops)
    norm = LogNorm(every.flops.min() / 1.01, every.flops.max() * 1.01)
    seen = np.arange(len(every.loss)) < len(tested.seen.loss)
    for index, budget in enumerate(flops):
        color = SHADES(0.92 * norm(budget))
        for part, face in ((seen, color), (~seen, 'none')):
            rows = part & (which == index)
            ax.scatter(every.params[rows], every.loss[rows], 16, edgecolors=[color], c=[face])
        rows = which == index
        if len(flops) <= MOST_CURVES and rows.sum() > 2:
            low, high = every.params[rows].min(), every.params[rows].max()
            _curve(ax, tested.fit, float(budget), np.geomspace(low, high, 100), color)
    _log(ax, 'x')
    ax.set(xlabel='parameters N', ylabel='loss, nats', title='Losses by budget')
    if len(flops) > 1:
        shades = matplotlib.colors.ListedColormap(SHADES(np.linspace(0, 0.92, 256)))
        bar = ax.figure.colorbar(ScalarMappable(norm, shades), ax=ax, pad=0.02)
        bar.set_label('FLOPs')
        bar.ax.minorticks_off()
        _plain(bar.ax.yaxis)


def _curve(ax: Axes, fit: Fit, budget: float, sizes: np.ndarray, color: tuple) -> None:
    """The law's loss along a budget, or the parabola fitted to it; a dot at the minimum."""
    if isinstance(fit.law, Law):
        tokens = budget / (fit.law.cost * sizes)
        ax.plot(sizes, fit.law.loss(sizes, tokens), color=color, linewidth=1.1)
    elif fit.minima is not None and fit.minima.parabola is not None:
        near = np.abs(np.log(fit.minima.flops / budget)) < 0.01
        for parabola in fit.minima.parabola[near]:
            ax.plot(sizes, np.polyval(parabola, np.log10(sizes)), color=color, linewidth=1.1)
    best = float(fit.law.best_params(budget))
    if sizes[0] <= best <= sizes[-1]:
        loss = float(fit.law.best_loss(budget))
        ax.plot(best, loss, marker='D', markersize=4, color=BLACK, linestyle='')


def _frontier(ax: Axes, tested: Tested, what: str) -> None:
    fit, every = tested.fit, _every(tested)
    flops = np.geomspace(every.flops.min(), every.flops.max() * BEYOND, 100)
    name = f'best_{what}'
    ax.plot(flops, getattr(fit.law, name)(flops), color=BLUE, label=fit.method)
    if fit.samples is not None:
        samples = fit.samples.at((slice(None), None))
        tail = 50 * (1 - LEVEL)
        low, high = np.nanpercentile(
            getattr(samples, name)(flops[None]), [tail, 100 - tail], axis=0
        )
        ax.fill_between(flops, low, high, color=BLUE, alpha=0.2, linewidth=0, label=f'{LEVEL:.0%}')
    if fit.minima is not None:
        ax.plot(fit.minima.flops, getattr(fit.minima, what), 'o', color=BLACK, markersize=4)
    elif what == 'loss':
        ax.plot(tested.seen.flops, tested.seen.loss, '.', color=GREY, markersize=3, zorder=1)
    quantity = {'params': 'N*', 'loss': 'L*'}[what]
    for miss in tested.misses:
        if miss.quantity == quantity:
            ax.plot(
                miss.flops,
                miss.measured,
                marker='o',
                linestyle='',
                color=ORANGE,
                markerfacecolor='none',
                label='held out',
            )
    title = {'params': 'Best size of a budget', 'loss': 'The lowest loss'}[what]
    label = {'params': 'parameters N*', 'loss': 'loss L*, nats'}[what]
    _log(ax, 'xy' if what == 'params' else 'x')
    ax.set(xlabel='FLOPs', ylabel=label, title=title)
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    ax.legend(handles.values(), handles)


def _residuals(ax: Axes, tested: Tested) -> None:
    fit = tested.fit
    ax.axhline(0, color=BLACK, linewidth=1)
    if isinstance(fit.law, Law):
        ax.scatter(tested.seen.flops, fit.residuals, 14, color=BLUE, linewidths=0, label='fitted')
        if tested.held is not None:
            held = tested.held
            misses = np.log(held.loss / fit.law.loss(held.params, held.tokens))
            ax.scatter(held.flops, misses, 14, edgecolors=ORANGE, c='none', label='held out')
            ax.legend()
    elif fit.minima is not None:
        ax.scatter(fit.minima.flops, fit.residuals, 14, color=BLUE, linewidths=0)
    _log(ax, 'x')
    ax.set(xlabel='FLOPs', ylabel='log loss, measured - fitted', title='Residuals')


def _every(tested: Tested) -> Runs:
    """Seen, then held out."""
    return tested.seen if tested.held is None else join(tested.seen, tested.held)


def _log(ax: Axes, names: str) -> None:
    """Logarithmic axes (x, y), with plain labels such as 1e9: the style draws no formulas."""
    for name in names:
        ax.set(**{f'{name}scale': 'log'})
        _plain({'x': ax.xaxis, 'y': ax.yaxis}[name])


def _plain(axis: Axis) -> None:
    axis.set_major_locator(ticker.LogLocator(numticks=6))
    axis.set_major_formatter(lambda value, _: f'{value:.0e}'.replace('e+', 'e').replace('e0', 'e'))
    axis.set_minor_formatter(ticker.NullFormatter())
