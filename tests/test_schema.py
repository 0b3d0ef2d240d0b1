import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from bigjax import schema
from bigjax.errors import ConfigError
from bigjax.schema import Fraction, Positive, PositiveInt


@dataclasses.dataclass(frozen=True)
class Inner:
    name: str = 'a'
    rate: Positive = 1.0


@dataclasses.dataclass(frozen=True)
class Outer:
    widths: tuple[PositiveInt, ...] = (8,)
    share: Fraction = 0.5
    kind: Literal['one', 'two', 'none'] = 'one'
    flag: bool = False
    inner: Inner = Inner()
    maybe: PositiveInt | None = None
    shares: Mapping[str, str | float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Open:
    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def test_values_keep_their_meaning():
    built = schema.build(
        Outer,
        {
            'widths': [4, 2],
            'share': 1,
            'inner': {'rate': 2},
            'maybe': 3,
            'shares': {'a': 0.1, 'b': 'x'},
        },
    )
    assert built == Outer((4, 2), 1.0, inner=Inner(rate=2.0), maybe=3, shares={'a': 0.1, 'b': 'x'})
    assert isinstance(built.share, float)


def test_none_is_a_choice_where_there_is_one():
    """`--config.kind=none` is read as None, before anybody knows the type."""
    assert schema.build(Outer, {'kind': None, 'maybe': None}) == Outer(kind='none', maybe=None)


def test_shorthands():
    assert schema.build(Outer, {'inner': 'b'}).inner == Inner('b')
    assert schema.build(Outer, {'widths': 5}).widths == (5,)
    assert schema.build(Open, {'name': 'x', 'depth': 2}).options == {'depth': 2}


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'witdhs': (1,)}, "unknown key config.witdhs: did you mean 'widths'"),
        ({'widths': (4, 0)}, r'config.widths\[1\]: expected a number >= 1, got 0'),
        ({'widths': (4, 2.5)}, r'config.widths\[1\]: expected an int, got 2.5'),
        ({'share': 1.5}, 'config.share: expected a number >= 0 and <= 1, got 1.5'),
        ({'share': math.nan}, 'config.share: expected a finite number, got nan'),
        ({'share': '0.5'}, 'config.share: expected a float'),
        (
            {'kind': 'tow'},
            "config.kind: expected one of one, two, none, got 'tow'; did you mean 'two'",
        ),
        ({'flag': 1}, 'config.flag: expected True or False, got 1'),
        ({'maybe': True}, 'config.maybe: expected an int, got True'),
        ({'inner': 3}, 'config.inner: expected a section'),
        ({'inner': {'rate': -1}}, 'config.inner.rate: expected a number > 0'),
    ],
)
def test_refusals_name_the_place_and_the_cure(values, message):
    with pytest.raises(ConfigError, match=message):
        schema.build(Outer, values)


def test_a_required_field_is_asked_for():
    with pytest.raises(ConfigError, match=r'missing config.name: expected a string'):
        schema.build(Open, {})


def test_to_dict_is_the_inverse_of_build():
    value = Outer((3, 4), 0.25, 'two', True, Inner('z', 2.0), 7, {'a': 0.5})
    assert schema.build(Outer, schema.to_dict(value)) == value
    opened = Open('x', {'depth': 2})
    assert schema.to_dict(opened) == {'name': 'x', 'depth': 2}
    assert schema.build(Open, schema.to_dict(opened)) == opened
