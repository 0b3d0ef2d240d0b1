"""Entries of a table are functions; their keyword-only arguments are the options of a config.

    def adam(parts: Parts, *, b1: Rate = 0.9, b2: Rate = 0.999, eps: Positive = 1e-8) -> ...

The signature is all there is to write: its annotations are checked like the fields of a config.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields, make_dataclass
from typing import Any

from bigjax import components, schema
from bigjax.errors import ConfigError, nearest


def bind(
    table: Mapping[str, Callable], name: str, options: Mapping[str, Any], section: type, where: str
) -> Callable:
    """The entry called `name` with its `options` checked and filled in.

    name: a key of `table`, or `package.module` for one of the user's own, which defines `build`.
    section: the dataclass that `options` were left over from; its fields take part in hints.

    Raises: ConfigError for an unknown name or key, a wrong type, a value out of range.
    """
    entry = _find(table, name, f'{where}.name')
    parameters = [
        parameter
        for parameter in inspect.signature(entry, eval_str=True).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    own = {parameter.name for parameter in parameters}
    for key in options:
        if key not in own:
            known = own | {each.name for each in fields(section)} - {'options'}
            raise ConfigError(f'unknown key {where}.{key} (of {name}): {nearest(key, known)}')
    options_fields = [
        (p.name, p.annotation, field(default=MISSING if p.default is p.empty else p.default))
        for p in parameters
    ]
    cls = make_dataclass('Options', options_fields, frozen=True, kw_only=True)
    return functools.partial(entry, **vars(schema.build(cls, options, where)))


def _find(table: Mapping[str, Callable], name: str, where: str) -> Callable:
    if name in table:
        return table[name]
    if '.' not in name:
        raise ConfigError(
            f'unknown {where} {name!r}: {nearest(name, table)} (your own is named package.module)'
        )
    module = components.import_users(name, where)
    if not hasattr(module, 'build'):
        raise ConfigError(f'{where}: {module.__file__} defines no build; see {__package__}')
    return module.build
