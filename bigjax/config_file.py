"""Config files: Python that is run, and fields set over it as on a command line.

A config file defines `get_config(arg=None)`, which returns an `ml_collections.ConfigDict`, or any
mapping. `load` reads it, applies `--config.a.b=value` overrides and resolves it into a `Config`.
"""

import ast
import importlib.util
import inspect
import math
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_collections

from bigjax import schema
from bigjax.config import Config, resolve
from bigjax.errors import BigjaxError, ConfigError

NAMED = ('model', 'task', 'data', 'optimizer', 'schedule')
"""Sections that a config may give by their name alone."""


def load(path_and_arg: str, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """The config of `FILE.py[:ARG]` with `('train.steps', '10')` overrides. Raises: ConfigError."""
    return _overridden(_run_config_file(path_and_arg), overrides)


def override(config: Config, overrides: Sequence[tuple[str, str]]) -> Config:
    """The config with some fields set as on a command line. Raises: ConfigError."""
    return _overridden(schema.to_dict(config), overrides)


def _overridden(mapping: Mapping[str, Any], overrides: Sequence[tuple[str, str]]) -> Config:
    _check_keys(mapping, 'config')
    values = ml_collections.ConfigDict(mapping)
    values.unlock()
    for key, text in overrides:
        _override(values, key, text)
    return resolve(values)


def run_file(path: Path, needs: str) -> Any:
    """The module that the Python file is, run anew. Raises: ConfigError, also where it lacks the
    function `needs`."""
    name = f'bigjax_file_{path.parent.name}_{path.stem}'
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f'{path}: expected a Python file (.py)')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with _telling_where(path):
        spec.loader.exec_module(module)
    if not hasattr(module, needs):
        raise ConfigError(f'{path} has no {needs}(); define it')
    return module


def _run_config_file(path_and_arg: str) -> Mapping[str, Any]:
    path, _, arg = path_and_arg.partition(':')
    if not Path(path).is_file():
        raise ConfigError(f'no config file {path!r}; expected --config=FILE.py[:ARG]')
    get_config = run_file(Path(path), 'get_config').get_config
    with _telling_where(Path(path)):
        takes_arg = bool(inspect.signature(get_config).parameters)
        if arg and not takes_arg:
            raise ConfigError(f'{path} takes no argument, got {arg!r}')
        made = get_config(arg) if arg else get_config()
    if not isinstance(made, Mapping | ml_collections.ConfigDict):
        raise ConfigError(f'{path}: expected get_config() to return a ConfigDict, got {made!r}')
    return made


@contextmanager
def _telling_where(path: Path) -> Iterator[None]:
    """Raises: ConfigError for whatever goes wrong in a config file, with its last line."""
    try:
        yield
    except BigjaxError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [
            f' line {frame.lineno}' for frame in frames if frame.filename == os.path.abspath(path)
        ]
        raise ConfigError(
            f'{path}{"".join(lines[-1:])} does not run: {type(error).__name__}: {error}'
        ) from error


def _check_keys(values: Any, where: str) -> None:
    if isinstance(values, Mapping | ml_collections.ConfigDict):
        for key, value in values.items():
            if not isinstance(key, str) or not key or '.' in key:
                raise ConfigError(f'{where}: expected names for keys, without a dot, got {key!r}')
            _check_keys(value, f'{where}.{key}')


def _override(values: ml_collections.ConfigDict, key: str, text: str) -> None:
    *sections, last = key.split('.')
    for name in sections:
        child = values.get(name)
        if isinstance(child, str) and name in NAMED:
            child = {'name': child}
        if child is not None and not isinstance(child, Mapping | ml_collections.ConfigDict):
            raise ConfigError(f'--config.{key}: {name} is {child!r}, which has no fields')
        if not isinstance(child, ml_collections.ConfigDict):
            child = ml_collections.ConfigDict(child)
            with values.ignore_type():
                values[name] = child
        values = child
    try:
        with values.ignore_type():
            values[last] = parse_value(text)
    except OverflowError as error:  # an int where there was a float
        raise ConfigError(f'bad value for config.{key}: {error}') from None


def parse_value(text: str) -> Any:
    """A value as typed on a command line: a Python literal, true, false, none, or a string."""
    word = {'true': True, 'false': False, 'none': None, 'null': None, 'nan': math.nan}
    if text.lower() in word:
        return word[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def format_value(value: Any) -> str:
    """The inverse of `parse_value`: how a value is typed on a command line."""
    if isinstance(value, str):
        return value if parse_value(value) == value else repr(value)
    return repr(value)
