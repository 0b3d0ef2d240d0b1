"""Updates that would do harm: refused and counted inside the step, with no word from the host.

An update is refused if its loss or its gradient norm is not finite; and, if the config says so, if
its loss spikes: if it lies more than `deviations` standard deviations above the running mean of the
losses whose updates were taken. Both are exponential, with weight 1/n for the nth loss until that
falls to 0.02 (Finch 2009, Incremental calculation of weighted mean and variance, 9), and a spike
needs 50 losses before it. A deviation counts for no less than a thousandth of the mean.

Once a whole budget of updates in a row was refused, all later ones are too, until the host sees it.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.config import GuardConfig

WEIGHT, WARMUP = 0.02, 50
NONFINITE, SPIKE, LATE = 'not finite', 'spike', 'over budget'
VERDICTS = (None, NONFINITE, SPIKE, LATE)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guard:
    """skipped, in_row: int32 [], updates refused in all, and since the last that was taken.

    mean, variance: float32 [], of the losses; seen: int32 [], how many.
    """

    skipped: Any
    in_row: Any
    mean: Any
    variance: Any
    seen: Any


def first() -> Guard:
    """At the start of a run."""
    count, number = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
    return Guard(count, count, number, number, count)


def after_step(
    config: GuardConfig, before: Guard, loss: jax.Array, finite: jax.Array, excused: jax.Array
) -> tuple[jax.Array, Guard, jax.Array]:
    """Whether to take the update [], the guard for the next step, and an index into VERDICTS [].

    finite: whether loss and gradients are. excused: if they are not, that it does not count in a
    row, for the loss scale can mend it.
    """
    excess = loss - before.mean
    deviation = jnp.maximum(jnp.sqrt(before.variance), 1e-3 * jnp.abs(before.mean))
    spikes = finite & (before.seen >= WARMUP) & (excess > config.deviations * deviation)
    over = before.in_row >= config.budget
    taken = finite & ~over
    if config.spike != 'log':
        taken &= ~spikes
    weight = jnp.maximum(WEIGHT, 1 / (before.seen + 1))
    counts = ~taken & (finite | over | ~excused)

    def learnt(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(taken, new, old)

    after = Guard(
        before.skipped + jnp.where(taken, 0, 1),
        jnp.where(taken, 0, before.in_row + jnp.where(counts, 1, 0)),
        learnt(before.mean + weight * excess, before.mean),
        learnt((1 - weight) * (before.variance + weight * excess**2), before.variance),
        learnt(before.seen + 1, before.seen),
    )
    verdict = jnp.where(spikes, 2, jnp.where(over, 3, 0))
    return taken, after, jnp.where(finite, verdict, 1)
