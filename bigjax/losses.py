"""Losses, unreduced, and penalties on parameters.

A loss has one value an example, a token or an element; the caller weights and sums them. All are
computed in float32, whatever the compute dtype of the logits, and refuse shapes that would only
fit by broadcasting. A weight of zero does not hide nan (0 * nan is nan), so padding must hold
valid targets too.

Shapes: `...` is any number of leading axes (examples, tokens); C is the classes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

PyTree = Any


def softmax_cross_entropy(
    logits: Array, targets: Array, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Array:
    """Cross-entropy in nats of logits [..., C] with class ids [...] or probabilities [..., C].

    `label_smoothing` mixes the targets with the uniform distribution (Szegedy et al. 2016,
    section 7). `z_loss` times the squared log normalizer is added, which holds that normalizer
    near zero (Chowdhery et al. 2022, section 5). An id outside [0, C) gives nan. Returns [...].
    """
    logits = logits.astype(jnp.float32)
    if targets.ndim == logits.ndim:
        _require_shape(targets, logits.shape)
        probabilities = optax.smooth_labels(targets.astype(jnp.float32), label_smoothing)
        losses = optax.losses.softmax_cross_entropy(logits, probabilities)
    else:
        _require_shape(targets, logits.shape[:-1])
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)
        losses = jnp.where(targets < 0, jnp.nan, losses)  # the gather would wrap around
        if label_smoothing:
            uniform = jax.nn.logsumexp(logits, axis=-1) - logits.mean(axis=-1)
            losses = (1 - label_smoothing) * losses + label_smoothing * uniform
    if z_loss:
        losses += z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
    return losses


def sigmoid_cross_entropy(logits: Array, targets: Array, label_smoothing: float = 0.0) -> Array:
    """Binary cross-entropy in nats of each logit [...] with its target in [0, 1] [...].

    With C labels an example both are [..., C], and so is the result. `label_smoothing` draws the
    targets towards 1/2.
    """
    _require_shape(targets, logits.shape)
    targets = (1 - label_smoothing) * targets.astype(jnp.float32) + label_smoothing / 2
    return optax.losses.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets)


def squared_error(predictions: Array, targets: Array) -> Array:
    """(prediction - target)² of each element: [...]."""
    return _error(predictions, targets) ** 2


def absolute_error(predictions: Array, targets: Array) -> Array:
    """|prediction - target| of each element: [...]."""
    return jnp.abs(_error(predictions, targets))


def huber_error(predictions: Array, targets: Array, delta: float = 1.0) -> Array:
    """Half the squared error up to `delta`, linear beyond it (Huber 1964), by element: [...]."""
    return optax.losses.huber_loss(_error(predictions, targets), delta=delta)


def l1_penalty(params: PyTree) -> Array:
    """Sum of |w| over all parameters."""
    # Not jnp.abs, whose derivative at 0 is 1 in JAX: a bias that starts at 0 would be pushed.
    return _sum_over_leaves(lambda w: w * jax.lax.stop_gradient(jnp.sign(w)), params)


def l2_penalty(params: PyTree) -> Array:
    """Half the sum of w² over all parameters.

    The half makes a coefficient mean what `weight_decay` means to sgd: the gradient is w itself.
    """
    return _sum_over_leaves(lambda w: 0.5 * w**2, params)


def _error(predictions: Array, targets: Array) -> Array:
    _require_shape(targets, predictions.shape)
    return predictions.astype(jnp.float32) - targets.astype(jnp.float32)


def _require_shape(targets: Array, expected: tuple[int, ...]) -> None:
    if targets.shape != expected:
        raise ValueError(f'targets have shape {targets.shape}; these outputs need {expected}')


def _sum_over_leaves(function: Callable[[Array], Array], params: PyTree) -> Array:
    leaves = jax.tree.leaves(params)
    sums = [jnp.sum(function(leaf.astype(jnp.float32))) for leaf in leaves]
    return jnp.asarray(sum(sums), jnp.float32)
