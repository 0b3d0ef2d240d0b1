"""The gradient noise scale as training measures it: from the microbatches of a step.

With sums of weights w_j over A microbatches and W in all, the squared norms of their gradients,
averaged with weights w_j, are those of batches of size W / A where weights are equal, and where
they are not: E |g_j|^2 = |G|^2 + tr S / w_j, of which the mean is |G|^2 + tr S / (W / A).

Examples are counted by weight: a batch of text by its tokens. A step that is measured costs a norm
of the gradients for each microbatch; other steps cost nothing.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bigjax.analysis.noise_scale import from_two_sizes

WEIGHT = 0.02
"""Of the newest measurement in the moving averages, after 1/n for the nth until it is as low."""


class Parts(NamedTuple):
    """Sums over microbatches, []: of w_j |g_j|^2, of one where w_j is not 0, and of w_j."""

    squares: jax.Array
    used: jax.Array
    weight: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoiseAverages:
    """Moving averages of tr S and |G|^2, float32 [], and how many measurements, int32 []."""

    trace: Any
    square: Any
    seen: Any


def first() -> NoiseAverages:
    """At the start of a run."""
    number = jnp.zeros((), jnp.float32)
    return NoiseAverages(number, number, jnp.zeros((), jnp.int32))


def of_microbatch(due: jax.Array, grads: Any, unit: Any, weight: jax.Array) -> Parts:
    """Of one, where it is `due`: `grads` times `unit` is the sum over its rows."""

    def square() -> jax.Array:
        return unit**2 * optax.tree.norm(grads, squared=True) / jnp.where(weight > 0, weight, 1)

    squares = jax.lax.cond(due, square, lambda: jnp.zeros((), jnp.float32))
    return Parts(squares, (weight > 0).astype(jnp.float32), weight.astype(jnp.float32))


def after_step(
    before: NoiseAverages,
    due: jax.Array,
    parts: Parts,
    grads: Any,
    penalised: jax.Array,
) -> NoiseAverages:
    """The averages with this step in them, where it is `due`, finite, and of several microbatches.

    grads: the mean over the whole batch. penalised: the norm of that with the gradient of the
        penalties added, which has no noise.
    """

    def measured() -> NoiseAverages:
        plain, small = optax.tree.norm(grads, squared=True), parts.weight / parts.used
        noise = from_two_sizes(small, parts.weight, parts.squares / parts.weight, plain)
        square = noise.square + penalised**2 - plain
        share = jnp.maximum(WEIGHT, 1 / (before.seen + 1))
        after = NoiseAverages(
            before.trace + share * (noise.trace - before.trace),
            before.square + share * (square - before.square),
            before.seen + 1,
        )
        useful = jnp.isfinite(noise.trace) & jnp.isfinite(square)
        return jax.tree.map(lambda new, old: jnp.where(useful, new, old), after, before)

    return jax.lax.cond(due, measured, lambda: before)


def metrics(averages: NoiseAverages) -> dict[str, jax.Array]:
    """What to log: the ratio of the averages, and them."""
    return {
        'noise_scale': averages.trace / averages.square,
        'noise_trace': averages.trace,
        'noise_square': averages.square,
    }
