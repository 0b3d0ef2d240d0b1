"""Plain mappings into frozen dataclasses, checked once at the edge.

A schema is an ordinary frozen dataclass; constraints ride on its annotations:

    @dataclass(frozen=True)
    class Config:
        widths: tuple[PositiveInt, ...] = (128, 64)
        dropout: Fraction = 0.0

`build` refuses unknown keys, wrong types, values out of range and values that are not finite,
naming the path of the field and the nearest known name. Below this edge no value needs checking
again.
"""

import contextlib
import dataclasses
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from bigjax.errors import ConfigError, nearest

T = TypeVar('T')

FLOAT32_MAX = (2 - 2**-23) * 2.0**127
"""What is larger would be an infinity on a device."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number; `above` and `below` exclude their end."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and self.above < value < self.below

    def __str__(self) -> str:
        ends = [('>=', self.low), ('>', self.above), ('<=', self.high), ('<', self.below)]
        return ' and '.join(f'{sign} {end:g}' for sign, end in ends if math.isfinite(end))


PositiveInt = Annotated[int, Range(low=1)]
NonNegativeInt = Annotated[int, Range(low=0)]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(low=0)]
Fraction = Annotated[float, Range(low=0, high=1)]
Rate = Annotated[float, Range(low=0, below=1)]
"""A probability of dropping: 1 would drop everything."""


def build(cls: type[T], values: Mapping[str, Any], where: str = 'config') -> T:
    """An instance of the dataclass `cls` from `values`.

    A field annotated `Mapping` and named `options` collects the keys that `cls` itself does not
    name (a component's own fields, checked when the component is found). A string stands for a
    section whose first field it sets. `values` may already hold built sections.

    Raises: ConfigError, one line: what, where, expected, got, how to mend.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    built: dict[str, Any] = {}
    is_open = fields.pop('options', None) is not None
    rest = {key: value for key, value in values.items() if key not in fields}
    if is_open:
        built['options'] = {**rest.pop('options', {}), **rest}
    elif rest:
        key = next(iter(rest))
        raise ConfigError(f'unknown key {where}.{key}: {nearest(key, fields)}')
    for name, field in fields.items():
        if name in values:
            built[name] = _convert(hints[name], values[name], f'{where}.{name}')
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f'missing {where}.{name}: expected {describe(hints[name])}')
    try:
        return cls(**built)
    except ValueError as error:  # a __post_init__ that compares fields
        raise ConfigError(f'{where}: {error}') from None


def options_of(function: Callable) -> type:
    """A schema of the keyword-only arguments of a function, which have defaults: its options."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    keywords = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    fields: list[Any] = [(p.name, p.annotation, p.default) for p in keywords]
    return dataclasses.make_dataclass('Options', fields, frozen=True)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _convert(args[0], value, where)
        for limits in args[1:]:
            if isinstance(limits, Range) and value is not None and value not in limits:
                raise _wrong(where, f'a number {limits}', value)
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is Literal:
        if value is None and 'none' in args:  # as --config.a.b=none reads where None may be
            return 'none'
        if value not in args:
            raise _wrong(where, describe(hint), value, nearest(str(value), map(str, args)))
        return value
    if origin is tuple:
        return _convert_tuple(args, value, where)
    if hint is Any or hint is object:
        return value
    if dataclasses.is_dataclass(hint):
        return _convert_dataclass(typing.cast(Any, hint), value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(where, 'a mapping', value)
        return {str(k): _convert(args[1], v, f'{where}.{k}') for k, v in value.items()}
    return _convert_scalar(hint, value, where)


def _convert_dataclass(cls: Any, value: Any, where: str) -> Any:
    if isinstance(value, cls):
        return value
    if hasattr(cls, 'parse'):  # a value with a notation of its own, such as '10 epochs'
        try:
            return cls.parse(value)
        except ValueError as error:
            raise _wrong(where, str(error), value) from None
    if isinstance(value, str):  # 'adamw' stands for {'name': 'adamw'}
        value = {dataclasses.fields(cls)[0].name: value}
    if not isinstance(value, Mapping):
        raise _wrong(where, 'a section (a mapping)', value)
    return build(cls, value, where)


def _convert_union(args: tuple, value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    *others, last = [option for option in args if option is not type(None)]
    for option in others:
        with contextlib.suppress(ConfigError):
            return _convert(option, value, where)
    return _convert(last, value, where)


def _convert_tuple(args: tuple, value: Any, where: str) -> tuple:
    if isinstance(value, str):  # as typed on a command line: --config.eval.metrics=auc,accuracy
        value = [item.strip() for item in value.split(',') if item.strip()]
    elif not isinstance(value, list | tuple):
        value = [value]  # one value is a tuple of one: --config.model.widths=64
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise _wrong(where, f'{len(args)} values', value)
    return tuple(
        _convert(hint, item, f'{where}[{index}]')
        for index, (hint, item) in enumerate(zip(args, value, strict=True))
    )


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < sys.float_info.max else math.inf
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _wrong(where, describe(hint), value)
    if isinstance(value, float) and not abs(value) <= FLOAT32_MAX:
        raise _wrong(where, 'a finite number', value)
    if isinstance(value, int) and abs(value) >= 2**63:
        raise _wrong(where, 'an int of 64 bits', value)
    return value


def _wrong(where: str, expected: str, got: Any, hint: str = '') -> ConfigError:
    mend = hint or f'set it with --{where}=...'
    return ConfigError(f'bad value for {where}: expected {expected}, got {got!r}; {mend}')


def describe(hint: Any) -> str:
    """An annotation in words, for messages: `a tuple of an int >= 1`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        limits = ' '.join(str(extra) for extra in args[1:] if isinstance(extra, Range))
        return f'{describe(args[0])} {limits}'.strip()
    if origin in (typing.Union, types.UnionType):
        return ' or '.join(describe(option) for option in args)
    if origin is Literal:
        return 'one of ' + ', '.join(map(str, args))
    if origin is tuple:
        return f'a tuple of {describe(args[0])}'
    if hint is type(None):
        return 'None'
    names = {int: 'an int', float: 'a float', str: 'a string', bool: 'True or False'}
    return names.get(hint, getattr(hint, '__name__', str(hint)))


def to_dict(value: Any, with_defaults: bool = True) -> Any:
    """The inverse of `build`, ready for JSON: dataclasses to dicts (options inlined), tuples to
    lists.

    with_defaults: False leaves out fields that are what they would be if nobody set them.
    """
    if hasattr(value, 'parse'):
        return str(value)
    if dataclasses.is_dataclass(value):
        fields = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        value = {f.name: v for f, v in fields.items() if with_defaults or v != _default(f)}
        value |= value.pop('options', {})
    if isinstance(value, Mapping):
        return {str(key): to_dict(item, with_defaults) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(item, with_defaults) for item in value]
    return value


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
