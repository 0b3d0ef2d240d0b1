"""Floating-point operations: counted in the program, and by the conventions of the literature.

`count` adds up the matrix products and convolutions of a traced function, 2 for each multiply and
add, loops multiplied out and recomputation included. Elementwise work is left out. The other
functions are formulas; they disagree on purpose, so print which one a figure comes from.

Shapes: B batch, T queries, S keys, H heads, C head size.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core

from bigjax import trees


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


def _ragged_dot(equation: Any) -> int:
    """A row meets the matrix of its own group only, as on a TPU; other backends may do more. Inside
    a shard_map over experts every device counts the rows of all, most of which it passes over."""
    left, right = (variable.aval for variable in equation.invars[:2])
    numbers = equation.params['ragged_dot_dimension_numbers']
    (_, contracted), (_, batch) = numbers.dot_dimension_numbers
    shared = {*contracted, *batch, *numbers.rhs_group_dimensions}
    free = (size for axis, size in enumerate(right.shape) if axis not in shared)
    return 2 * left.size * math.prod(free)


def _convolution(equation: Any) -> int:
    """Taps on padding count, as is usual; taps on the zeros that dilation puts in do not."""
    kernel, out = equation.invars[1].aval, equation.outvars[0].aval
    _, inputs, *spatial = equation.params['dimension_numbers'].rhs_spec
    taps = kernel.shape[inputs] * math.prod(kernel.shape[axis] for axis in spatial)
    return 2 * out.size * taps // math.prod(equation.params['lhs_dilation'])


def _fused_attention(products: int) -> Callable[[Any], int]:
    """`products` of [T, C] by [C, S] a head: two forward, five backward (one is recomputed)."""

    def flops(equation: Any) -> int:
        query, key = (variable.aval.shape for variable in equation.invars[:2])
        batch, queries, heads, size = query
        return 2 * products * batch * heads * queries * key[1] * size

    return flops


PRODUCTS: dict[str, Callable[[Any], int]] = {
    'dot_general': _dot_general,
    'ragged_dot_general': _ragged_dot,
    'conv_general_dilated': _convolution,
    'dot_product_attention_fwd_wrapper': _fused_attention(2),  # cuDNN's
    'dot_product_attention_bwd_wrapper': _fused_attention(5),
}


@dataclass(frozen=True)
class ParameterCounts:
    """How many parameters, by the ways of counting that the formulas below ask for.

    total: all of them.
    nonembedding: without tables of tokens and positions and the read-out to tokens (Kaplan et al.).
    matmul: matrices that multiply activations, the read-out included, look-ups not.
    without_lookups: total less the tables that are only looked up.
    active: of matmul, those that a token meets: k of E experts.
    """

    total: int
    nonembedding: int
    matmul: int
    without_lookups: int
    active: int


def parameter_counts(
    params: Any, axes: Any, tied_head: bool, experts_per_token: int = 1
) -> ParameterCounts:
    """Counts of the tree `params` (arrays or shapes) with its logical `axes`.

    tied_head: the token table is the read-out too, so it multiplies activations.
    """
    names = trees.names(params)
    leaves = zip(names, jax.tree.leaves(params), jax.tree.leaves(axes), strict=True)
    total = nonembedding = matmul = lookups = active = 0
    for name, leaf, leaf_axes in leaves:
        size = math.prod(leaf.shape)
        is_position = 'position' in leaf_axes
        is_table = tuple(leaf_axes) == ('vocab', 'embed')
        total += size
        nonembedding += size * (not is_position and 'vocab' not in leaf_axes)
        multiplies = size * (name.endswith('kernel') or (is_table and tied_head))
        matmul += multiplies
        experts = leaf.shape[tuple(leaf_axes).index('experts')] if 'experts' in leaf_axes else 1
        active += multiplies if experts == 1 else multiplies // experts * experts_per_token
        lookups += size * (is_position or (is_table and not tied_head))
    return ParameterCounts(total, nonembedding, matmul, total - lookups, active)


def six_n(parameters: int, tokens: int) -> int:
    """6 N D, training. N is `active` (our default), or `nonembedding` (Kaplan et al. 2020, 2.1)."""
    return 6 * parameters * tokens


def palm(
    parameters: int, layers: int, width: int, context: int, tokens: int, causal: bool = False
) -> int:
    """(6 N + 12 L d T) D, training (Chowdhery et al. 2022, appendix B); causal counts half of T.

    N is `without_lookups`, d the heads times the head size.
    """
    attention = (6 if causal else 12) * layers * width * context
    return (6 * parameters + attention) * tokens


def chinchilla(
    layers: int, width: int, mlp: int, heads: int, vocabulary: int, context: int, tokens: int
) -> int:
    """Training, embeddings and softmax included (Hoffmann et al. 2022, appendix F).

    `tokens` is taken as whole sequences of `context`, of which it must be a multiple.
    """
    embeddings = 2 * context * vocabulary * width
    projections = 8 * context * width**2
    attention = 4 * context**2 * width + 3 * heads * context**2
    dense = 4 * context * width * mlp
    forward = 2 * embeddings + layers * (projections + attention + dense)
    return 3 * forward * (tokens // context)
