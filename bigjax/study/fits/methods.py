"""The fits by name."""

from collections.abc import Callable

from bigjax.errors import ConfigError, nearest
from bigjax.study.fits import envelope, isoflop, parametric, projection
from bigjax.study.fits.resample import Bootstrap
from bigjax.study.fits.result import Fit
from bigjax.study.fits.table import Runs

Method = Callable[[Runs, Bootstrap], Fit]

METHODS: dict[str, Method] = {
    'envelope': envelope.fit,
    'isoflop': isoflop.fit,
    'parametric': parametric.fit,
    'projection': projection.fit,
}
"""Approaches 1, 2 and 3 of Hoffmann et al., and variable projection."""


def find(name: str) -> Method:
    """Raises: ConfigError."""
    if name not in METHODS:
        raise ConfigError(f'unknown method {name!r}: {nearest(name, METHODS)}')
    return METHODS[name]
