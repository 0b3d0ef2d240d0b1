"""Optimizer state kept in bfloat16: half the memory of float32.

Rounded stochastically: to the nearest, a second moment would stay where it is, since what it loses
in a step (one part in a thousand with b2 = 0.999) is less than half of its last bit. The noise is a
function of the update and of an element's place, and so the same on any mesh and after a restart.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from optax import GradientTransformation as Transform


class Rounded(NamedTuple):
    """updates: int32 [], how many so far; state: the optimizer's own."""

    updates: jax.Array
    state: Any


def in_bfloat16(optimizer: Transform, params: Any) -> Transform:
    """`optimizer`, whose float32 arrays are kept in bfloat16 between updates, which are in float32.

    Scalars stay as they are, and so does what starts from the parameters: methods that measure the
    distance from them need it to the last bit.

    params: abstract or not.
    """
    is_moment = _moments(optimizer, params)

    def init(params: Any) -> Rounded:
        cast = _where(is_moment, lambda leaf: leaf.astype(jnp.bfloat16))
        return Rounded(jnp.zeros((), jnp.int32), cast(optimizer.init(params)))

    def update(updates: Any, rounded: Rounded, params: Any = None) -> tuple[Any, Rounded]:
        widened = _where(is_moment, lambda leaf: leaf.astype(jnp.float32))(rounded.state)
        updates, state = optimizer.update(updates, widened, params)
        count = rounded.updates + 1
        cast = _where(is_moment, lambda leaf: round_stochastically(leaf, count))
        return updates, Rounded(count, cast(state))

    return Transform(init, update)


def round_stochastically(x: jax.Array, count: jax.Array) -> jax.Array:
    """Float32 to bfloat16: up with the probability of how far up it is, by a draw a `count`."""
    strides = [math.prod(x.shape[axis + 1 :]) for axis in range(x.ndim)]
    place = sum(
        lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        for axis, stride in enumerate(strides)
    )
    noise = _hash(place + _hash(count.astype(jnp.uint32))) >> 16
    bits = lax.bitcast_convert_type(x, jnp.uint32) + noise
    rounded = lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def _hash(x: Any) -> Any:
    """A bijection of uint32 whose bits all depend on all (MurmurHash3's last step, Appleby)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _moments(optimizer: Transform, params: Any) -> Any:
    """A tree like the state, True for float32 arrays that do not depend on the parameters."""
    closed, state = jax.make_jaxpr(optimizer.init, return_shape=True)(params)
    dependent = set(closed.jaxpr.invars)
    for equation in closed.jaxpr.eqns:
        if dependent & {var for var in equation.invars if isinstance(var, core.Var)}:
            dependent.update(equation.outvars)
    leaves = [
        leaf.dtype == jnp.float32 and leaf.ndim > 0 and var not in dependent
        for leaf, var in zip(jax.tree.leaves(state), closed.jaxpr.outvars, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _where(chosen: Any, function: Any) -> Any:
    """`function` mapped over the leaves of a tree that are chosen."""
    return lambda tree: jax.tree.map(
        lambda choice, leaf: function(leaf) if choice else leaf, chosen, tree
    )
