"""Muon: momentum, orthogonalised, for hidden matrices; adamw for all else."""

import math
from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec
from optax import GradientTransformation as Transform
from optax import contrib

from bigjax import trees
from bigjax.errors import ConfigError
from bigjax.optim import groups
from bigjax.optim.parts import Parts, scale_each
from bigjax.schema import Positive, PositiveInt, Rate


def muon(
    parts: Parts,
    *,
    momentum: Rate = 0.95,
    nesterov: bool = True,
    ns_steps: PositiveInt = 5,
    consistent_rms: Positive | None = None,
    adamw_learning_rate: Positive | None = None,
    b1: Rate = 0.9,
    b2: Rate = 0.999,
    eps: Positive = 1e-8,
) -> Transform:
    """Jordan et al. 2024.

    ns_steps: of the Newton-Schulz iteration.
        Under a parametrization that factor is the base model's, and goes on from there as
        sqrt(fan_out / fan_in) does (Yang, Simon & Bernstein 2023, condition 1).
    consistent_rms: the root mean square of an update of any shape; .2 is like adamw's (Liu et al.
        2025, equation 4). Without it updates are scaled by sqrt(max(1, fan_out / fan_in)).
    adamw_learning_rate: the peak for all else, on the same schedule; unless given the same peak.
    """
    hidden = trees.map_with_name(groups.is_hidden_matrix, parts.shapes, parts.axes)
    if not any(jax.tree.leaves(hidden)):
        raise ConfigError('config.optimizer.name: this model has no matrix for muon; use adamw')
    fans = jax.tree.map(
        lambda matrix, p, axes: (
            contrib.MuonDimensionNumbers(*groups.fans(p, axes)) if matrix else optax.MaskedNode()
        ),
        hidden,
        parts.shapes,
        parts.axes,
    )
    orthogonalised = contrib.scale_by_muon(
        ns_steps=ns_steps, beta=momentum, eps=eps, nesterov=nesterov, weight_dimension_numbers=fans
    )

    def shape_factor(matrix: bool, p: Any, base: Any, axes: PartitionSpec) -> float:
        if not matrix:
            return 1.0
        (fan_in, fan_out), (base_in, base_out) = (_sizes(x, axes) for x in (p, base))
        growth = math.sqrt(fan_out / fan_in * base_in / base_out)
        if consistent_rms is None:
            return math.sqrt(max(1.0, base_out / base_in)) * growth
        return consistent_rms * math.sqrt(max(base_in, base_out)) * growth

    ratio = (adamw_learning_rate or parts.peak) / parts.peak
    return optax.chain(
        optax.partition(
            {'muon': orthogonalised, 'adamw': optax.scale_by_adam(b1, b2, eps)},
            jax.tree.map(lambda matrix: 'muon' if matrix else 'adamw', hidden),
        ),
        scale_each(jax.tree.map(shape_factor, hidden, parts.shapes, parts.base_shapes, parts.axes)),
        parts.decay,
        scale_each(jax.tree.map(lambda matrix: 1.0 if matrix else ratio, hidden)),
        parts.rate,
    )


def _sizes(p: Any, axes: PartitionSpec) -> tuple[int, int]:
    """Fan-in and fan-out."""
    into, out = groups.fans(p, axes)
    return math.prod(p.shape[axis] for axis in into), math.prod(p.shape[axis] for axis in out)
