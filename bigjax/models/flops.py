"""Floating-point operations, counted in the program.

`count` adds up the matrix products and convolutions of a traced function, 2 for each multiply and
add, loops multiplied out and recomputation included. Elementwise work is left out.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core


@dataclass(frozen=True)
class Count:
    """flops, and notes on what could not be counted exactly."""

    flops: int
    notes: tuple[str, ...] = ()


def count(function: Callable[..., Any], *args: Any) -> Count:
    """The FLOPs of `function(*args)`; args may be abstract (`jax.ShapeDtypeStruct`).

    A conditional counts as its dearest branch; a loop of unknown length once, with a note.
    """
    notes: dict[str, None] = {}  # an ordered set
    flops = _count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr, notes)
    return Count(flops, tuple(notes))


def _count_jaxpr(jaxpr: Any, notes: dict[str, None]) -> int:
    return sum(_count_equation(equation, notes) for equation in jaxpr.eqns)


def _count_equation(equation: Any, notes: dict[str, None]) -> int:
    name, params = equation.primitive.name, equation.params
    if name in PRODUCTS:
        return PRODUCTS[name](equation)
    bodies = [_count_jaxpr(body, notes) for body in _inner_jaxprs(params)]
    if name == 'cond':
        return max(bodies)
    total = sum(bodies)
    if name == 'scan':
        return total * params['length']
    if name == 'shard_map':  # the body is one device's
        return total * math.prod(params['mesh'].shape[axis] for axis in params['newly_manual_axes'])
    if name == 'pallas_call':
        return total * math.prod(params['grid_mapping'].grid)
    if name == 'while' and total:
        notes['a while loop of unknown length is counted once'] = None
    return total


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _dot_general(equation: Any) -> int:
    left = equation.invars[0].aval
    (contracted, _), _ = equation.params['dimension_numbers']
    return 2 * equation.outvars[0].aval.size * math.prod(left.shape[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    """Taps on padding count, as is usual; taps on the zeros that dilation puts in do not."""
    kernel, out = equation.invars[1].aval, equation.outvars[0].aval
    _, inputs, *spatial = equation.params['dimension_numbers'].rhs_spec
    taps = kernel.shape[inputs] * math.prod(kernel.shape[axis] for axis in spatial)
    return 2 * out.size * taps // math.prod(equation.params['lhs_dilation'])


def _fused_attention(products: int) -> Callable[[Any], int]:
    """`products` of [queries, size] by [size, keys] a head: two forward, five backward (one is
    recomputed)."""

    def flops(equation: Any) -> int:
        query, key = (variable.aval.shape for variable in equation.invars[:2])
        batch, queries, heads, size = query
        return 2 * products * batch * heads * queries * key[1] * size

    return flops


PRODUCTS: dict[str, Callable[[Any], int]] = {
    'dot_general': _dot_general,
    'conv_general_dilated': _convolution,
    'dot_product_attention_fwd_wrapper': _fused_attention(2),  # cuDNN's
    'dot_product_attention_bwd_wrapper': _fused_attention(5),
}
