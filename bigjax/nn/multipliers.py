"""What a parametrization multiplies in the forward pass; the rest of it is in `optim`."""

from typing import NamedTuple

import jax


class Multipliers(NamedTuple):
    """All 1 in the standard parametrization, and in any at the size of its base model.

    embedding: of what the input layer gives (`config.parametrization.alpha_in`).
    read_out: of what the read-out gives, its bias aside.
    attention: of the logits, beside 1 / sqrt(head size).
    branch: of what a residual branch adds.
    depth: residual blocks over those of the base. A branch's last matrix, which starts with a
        variance of 1 / (2 L) of the others', then takes the base's L.
    """

    embedding: float = 1.0
    read_out: float = 1.0
    attention: float = 1.0
    branch: float = 1.0
    depth: float = 1.0


STANDARD = Multipliers()


def times(x: jax.Array, factor: float) -> jax.Array:
    """x times a factor, in the dtype of x; the same program as without where that is 1."""
    return x if factor == 1 else x * factor
