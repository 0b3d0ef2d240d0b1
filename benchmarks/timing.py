"""Alternating runs, medians and spread: what every script here measures with."""

import statistics
import time
from collections.abc import Callable, Mapping


def alternate(runs: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, taken in turn, so that a drifting machine hits all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def spread(values: list[float], scale: float = 1e3) -> str:
    """Median (lowest to highest), in milliseconds by default."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f'{middle * scale:.3g} ({low * scale:.3g} to {high * scale:.3g})'


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over rounds of ours / theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """A Markdown table."""
    print('| ' + ' | '.join(head) + ' |')
    print('|' + '---|' * len(head))
    for row in rows:
        print('| ' + ' | '.join(row) + ' |')
