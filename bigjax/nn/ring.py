"""Attention over a sequence that lies spread over devices: keys go round them in a ring.

Each device keeps its own queries and adds up what they find in the keys that pass by (Liu et al.
2023, Ring Attention, section 3). None holds more than a part of the sequence at a time, in the
backward pass either: keys go round again then, and gather their gradients on the way.

Shapes: as in `partials`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bigjax.nn.partials import Keys, Partial, Queries, Rule, Summed, add_reached, nothing
from bigjax.sharding.rules import activation_spec

RING = 'context'
"""The mesh axis that keys go round."""
BY_QUERY = ('batch', 'kv_heads', None, 'sequence', None)
SUM = (BY_QUERY, BY_QUERY[:-1], BY_QUERY[:-1])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def attend_around(queries: Queries, keys: Keys, rule: Rule, summed: Summed) -> jax.Array:
    """`summed(queries, keys, rule).normalized()` where the mesh axis 'context' splits both.

    queries and keys are of one sequence, whose length the axis divides; `summed` is given a part
    of each at a time. Returns float32 [B, K, G, T, C].
    """
    return _forward(queries, keys, rule, summed)[0]


def _forward(queries: Queries, keys: Keys, rule: Rule, summed: Summed) -> tuple[jax.Array, Any]:
    def around(queries: Queries, keys: Keys) -> Partial:
        def meet(carry: tuple[Partial, Keys], _: None) -> tuple[tuple[Partial, Keys], None]:
            sum, keys = carry
            return (add_reached(sum, queries, keys, rule, summed), _passed_on(keys)), None

        (sum, _), _ = lax.scan(meet, (nothing(queries), keys), length=lax.axis_size(RING))
        return sum._replace(values=sum.normalized())

    specs = _specs(queries, keys)
    sums = _each(nothing(queries), SUM)
    found = jax.shard_map(around, in_specs=specs, out_specs=sums, check_vma=False)(queries, keys)
    return found.values, (queries, keys, found)


def _backward(rule: Rule, summed: Summed, saved: Any, gradient: jax.Array) -> tuple[Queries, Keys]:
    """Given the top and total of all keys, a part's share of values and total depends on no other
    part, and is differentiated by itself."""

    def around(queries: Queries, keys: Keys, found: Partial, gradient: jax.Array) -> Any:
        of_values = gradient / jnp.where(found.total > 0, found.total, 1)[..., None]
        of_total = -(of_values * found.values).sum(-1)

        def pulled(keys: Keys) -> Any:
            def share(*vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
                mine = queries._replace(vectors=vectors[0])
                passing = keys._replace(vectors=vectors[1], values=vectors[2])
                part = summed(mine, passing, rule)
                scale = jnp.exp(part.top - found.top)
                return part.values * scale[..., None], part.total * scale

            pull = jax.vjp(share, queries.vectors, keys.vectors, keys.values)[1]
            return pull((of_values, of_total))

        def meet(carry: tuple[Keys, Any], _: None) -> tuple[tuple[Keys, Any], None]:
            keys, sums = carry
            reaches = rule.reaches(queries, keys)
            of_queries, *of_keys = lax.cond(
                reaches, lambda: jax.tree.map(jnp.add, sums, pulled(keys)), lambda: sums
            )
            keys, of_keys = _passed_on((keys, of_keys))
            return (keys, (of_queries, *of_keys)), None

        vectors = (queries.vectors, keys.vectors, keys.values)
        zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in vectors)
        (_, sums), _ = lax.scan(meet, (keys, zeros), length=lax.axis_size(RING))
        return tuple(sum.astype(x.dtype) for sum, x in zip(sums, vectors, strict=True))

    queries, keys, found = saved
    of, to = _specs(queries, keys)
    of_queries, of_keys, of_values = jax.shard_map(
        around,
        in_specs=(of, to, _each(found, SUM), of.vectors),
        out_specs=(of.vectors, to.vectors, to.values),
        check_vma=False,
    )(queries, keys, found, gradient)
    none: Any = None  # of integers
    return Queries(of_queries, none), Keys(of_keys, of_values, none)


attend_around.defvjp(_forward, _backward)


def _passed_on(tree: Any) -> Any:
    """To the next device."""
    size = lax.axis_size(RING)
    return lax.ppermute(tree, RING, [(device, (device + 1) % size) for device in range(size)])


def _specs(queries: Queries, keys: Keys) -> tuple[Any, Any]:
    """How both lie on the mesh."""
    positions, segments = (None, 'sequence', None), ('batch', 'sequence', None)
    vectors = ('batch', 'kv_heads', 'sequence', None)
    return (
        _each(queries, (BY_QUERY, positions, segments, BY_QUERY)),
        _each(keys, (vectors, vectors, positions, segments)),
    )


def _each(arrays: Any, names: tuple[tuple[str | None, ...], ...]) -> Any:
    pairs = zip(arrays, names, strict=True)
    return type(arrays)(*(None if x is None else activation_spec(n, x.shape) for x, n in pairs))
