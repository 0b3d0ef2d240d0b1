"""Components by name: a name is a module, imported when a config asks for it.

A name without a dot is a module of ours (data `digits` is `bigjax.data.digits`), one with a dot a
module of the user's own (`package.module`). There is no registry to fill.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any, Literal

from bigjax import schema
from bigjax.errors import ConfigError, nearest

Kind = Literal['model', 'task', 'data']

_PACKAGES = {'model': 'bigjax.models', 'task': 'bigjax.tasks', 'data': 'bigjax.data'}
_ENTRY_POINTS = {'model': 'build', 'task': 'build', 'data': 'load'}


def find(kind: Kind, name: str, where: str) -> ModuleType:
    """The module of the component `name`; `where` is the config field that names it.

    Raises: ConfigError for an unknown name, a module that cannot be imported, or one that lacks
    `Config` or `build` (`load`, for data).
    """
    if not all(part.isidentifier() for part in name.split('.')):
        raise ConfigError(f'bad value for {where}: expected a name or package.module, got {name!r}')
    if '.' in name:
        module = import_users(name, where)
        if lacking := _lacking(kind, module):
            raise ConfigError(
                f'{where}: {module.__file__} defines no {lacking}; a {kind} module defines '
                f'Config, a frozen dataclass, and the function {_ENTRY_POINTS[kind]}'
            )
        return module
    full_name = f'{_PACKAGES[kind]}.{name}'
    if importlib.util.find_spec(full_name):
        module = importlib.import_module(full_name)
        if not _lacking(kind, module):
            return module
    raise ConfigError(
        f'unknown {where} {name!r}: {nearest(name, names(kind))} '
        f'(a module of your own is named package.module)'
    )


def build_config(module: ModuleType, options: Mapping[str, Any], where: str) -> Any:
    """The component's own `Config` from the options given for it. Raises: ConfigError."""
    return schema.build(module.Config, options, where)


def names(kind: Kind) -> list[str]:
    """Our own components of that kind. Imports them all, except those that lack a package."""
    package = importlib.import_module(_PACKAGES[kind])
    found = []
    for info in pkgutil.iter_modules(package.__path__):
        with suppress(ImportError):
            module = importlib.import_module(f'{package.__name__}.{info.name}')
            if not _lacking(kind, module):
                found.append(info.name)
    return found


def _lacking(kind: Kind, module: ModuleType) -> str:
    required = ('Config', _ENTRY_POINTS[kind])
    return ' and no '.join(name for name in required if not hasattr(module, name))


def import_users(name: str, where: str) -> ModuleType:
    """A module outside this repository. Raises: ConfigError saying which import failed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or str(error)
        if f'{name}.'.startswith(f'{missing}.'):
            raise ConfigError(
                f'{where}: no module named {missing!r} (for {name!r}); put its folder on PYTHONPATH'
            ) from error
        raise ConfigError(f'{where}: {name} imports {missing!r}, which is not installed') from error
    except (ImportError, SyntaxError) as error:
        raise ConfigError(
            f'{where}: {name} does not import: {type(error).__name__}: {error}'
        ) from error
