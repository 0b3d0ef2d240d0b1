"""Figures of a plan, in the style of `study.plots`."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from bigjax.study.plots import BLACK, BLUE, GREEN, GREY, ORANGE, styled

GIB = 2**30
COLORS = {
    'parameters': BLUE,
    'optimizer': '#56B4E9',
    'other state': BLACK,
    'batch': GREEN,
    'temporaries': ORANGE,
}


@styled
def memory(parts: Mapping[str, int], peak: int | None, usable: int | None) -> Figure:
    """Bytes of a device by what they hold, against what it has."""
    figure = Figure(figsize=(7.2, 2.0))
    ax = figure.add_subplot()
    left = 0.0
    for name, size in parts.items():
        width = size / GIB
        ax.barh(0, width, left=left, color=COLORS[name], height=0.6, label=f'{name} {width:.3g}')
        left += width
    if peak is not None and peak / GIB > left:  # did not fit: what for is not known
        ax.barh(0, peak / GIB - left, left=left, color=ORANGE, alpha=0.5, height=0.6, label='more')
    if usable is not None:
        ax.axvline(usable / GIB, color=BLACK, linewidth=1.2)
        ax.annotate('usable', (usable / GIB, 0.42), ha='right', fontsize=8, color=BLACK)
    ax.set_yticks([])
    ax.set_ylim(-0.4, 0.6)
    ax.set_xlabel('GiB a device')
    ax.grid(visible=False, axis='y')
    figure.legend(loc='outside upper center', ncols=5, fontsize=8, frameon=False)
    return figure


@styled
def roofline(seconds: Mapping[str, float]) -> Figure:
    """Seconds of a step by resource; the longest bar is the bound."""
    figure = Figure(figsize=(6.0, 2.2))
    ax = figure.add_subplot()
    names = [name for name, value in seconds.items() if value]
    values = [1e3 * seconds[name] for name in names]
    colors = [ORANGE if value == max(values) else GREY for value in values]
    bars = ax.barh(names, values, color=colors, height=0.6)
    ax.bar_label(bars, fmt='{:,.4g}', padding=3, fontsize=8.5)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.12 * max(values))
    ax.set_xlabel('milliseconds of a step, at best')
    ax.grid(visible=False, axis='y')
    return figure
