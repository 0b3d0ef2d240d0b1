"""What metrics need to know of one batch: cheap array code that runs inside jit, sharded or not.

Each statistic takes (outputs, targets, weights [...]) as an `align_*` function leaves them.
C classes or labels, O outputs of a regression; `...` is examples or tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from numpy.typing import ArrayLike

from bigjax.losses import softmax_cross_entropy, squared_error

PyTree = Any
Statistic = Callable[[Any, Array, Array], PyTree]

CALIBRATION_BINS = 15
TOP_K = (1, 2, 3, 5, 10, 20, 50, 100)


class Scored(NamedTuple):
    """What metrics of tokens need to know of logits [..., C], without keeping them: [...] each.

    nats: the cross-entropy; rank: how many classes are ahead of the target; confidence: the
    probability of the first.
    """

    nats: Array
    rank: Array
    confidence: Array


def score(logits: Array, targets: Array) -> Scored:
    """Of logits [..., C] and ids [...]."""
    logits = logits.astype(jnp.float32)
    confidence = jax.nn.softmax(logits).max(-1)
    return Scored(softmax_cross_entropy(logits, targets), target_rank(logits, targets), confidence)


def align_binary(logits: Array, targets: Array, weights: Array) -> tuple[Array, Array]:
    """Logits [...] and targets [...]."""
    return logits.reshape(weights.shape), targets.reshape(weights.shape)


def align_classes(logits: Array, targets: Array, weights: Array) -> tuple[Array, Array]:
    """Logits [..., C] and ids [...]."""
    ids = targets.argmax(-1) if targets.ndim == logits.ndim else targets
    return logits.reshape(*weights.shape, logits.shape[-1]), ids.reshape(weights.shape)


def align_tokens(outputs: Array | Scored, targets: Array, weights: Array) -> tuple[Scored, Array]:
    """Scores [...], of logits [..., C] unless they are given, and ids [...]."""
    if not isinstance(outputs, Scored):
        outputs = score(*align_classes(outputs, targets, weights))
    return outputs, targets.reshape(weights.shape)


def align_labels(logits: Array, targets: Array, weights: Array) -> tuple[Array, Array]:
    """Logits [..., C] and targets [..., C]."""
    shape = (*weights.shape, logits.shape[-1])
    return logits.reshape(shape), targets.reshape(shape)


def align_regression(outputs: Array, targets: Array, weights: Array) -> tuple[Array, Array]:
    """Predictions [..., O] and targets [..., O]."""
    shape = (*weights.shape, -1)
    return outputs.reshape(shape), targets.reshape(shape).astype(jnp.float32)


def mean_of(function: Callable[[Any, Array], Array]) -> Statistic:
    """The weighted sum of a function of (outputs, targets), and the sum of the weights."""

    def statistic(outputs: Any, targets: Array, weights: Array) -> PyTree:
        values = function(outputs, targets)
        return {'sum': _weighted_sum(values, weights), 'weight': weights.sum()}

    return statistic


def top_hits(logits: Array, targets: Array) -> Array:
    """Whether the target is among the k highest logits, for each k of TOP_K: [..., K]."""
    return _hits(target_rank(logits, targets))


def token_hits(scored: Scored, _: Array) -> Array:
    """The same of tokens that are scored already."""
    return _hits(scored.rank)


def _hits(rank: Array) -> Array:
    return jnp.stack([rank < k for k in TOP_K], axis=-1)


def target_rank(logits: Array, targets: Array) -> Array:
    """How many classes are ahead of the target: [...].

    Counted, not sorted. Of equal logits the lower class is ahead, and a nan is ahead of any.
    """
    targets = targets[..., None]
    own = jnp.take_along_axis(logits, targets, axis=-1)
    classes = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    ahead = jnp.where(classes < targets, ~(logits < own), (classes > targets) & ~(logits <= own))
    return ahead.sum(-1)


def all_labels_hit(logits: Array, targets: Array) -> Array:
    """Whether every label of an example is right, which a nan is not: [...]."""
    return (((logits > 0) == (targets > 0.5)) & ~jnp.isnan(logits)).all(-1)


def binary_confusion(logits: Array, targets: Array, weights: Array) -> Array:
    """Weight of each pair (target, prediction): [2, 2]."""
    return _confusion(targets > 0.5, logits > 0, jnp.isnan(logits), weights, num_classes=2)


def class_confusion(logits: Array, targets: Array, weights: Array) -> Array:
    """Weight of each pair (target, prediction): [C, C]."""
    unknown = jnp.isnan(logits).any(-1)
    return _confusion(targets, logits.argmax(-1), unknown, weights, num_classes=logits.shape[-1])


def label_confusion(logits: Array, targets: Array, weights: Array) -> Array:
    """A binary confusion matrix for each label: [C, 2, 2]."""
    return jax.vmap(partial(binary_confusion, weights=weights), in_axes=-1)(logits, targets)


def label_calibration(logits: Array, targets: Array, weights: Array) -> Array:
    """Bins by the probability of a positive, whose outcome is the target: [*labels, bins, 3]."""
    return _calibration_bins(jax.nn.sigmoid(logits), targets.astype(jnp.float32), weights)


def class_calibration(logits: Array, targets: Array, weights: Array) -> Array:
    """Bins by the probability of the predicted class, whose outcome is its truth: [bins, 3]."""
    right = (logits.argmax(-1) == targets).astype(jnp.float32)
    return _calibration_bins(jax.nn.softmax(logits).max(-1), right, weights)


def token_calibration(scored: Scored, _: Array, weights: Array) -> Array:
    """The same of tokens."""
    right = (scored.rank == 0).astype(jnp.float32)
    return _calibration_bins(scored.confidence, right, weights)


def scored_rows(logits: Array, targets: Array, weights: Array) -> PyTree:
    """The batch itself, flattened to N rows: scores [N] or [N, C], targets, weights [N]."""

    def flat(array: Array) -> Array:
        return array.reshape(-1, *array.shape[weights.ndim :])

    return {'scores': flat(logits), 'targets': flat(targets), 'weights': flat(weights)}


def nats_and_bytes(token_bytes: ArrayLike) -> Statistic:
    """The total loss, and the bytes that the targets stand for by the table `token_bytes` [C]."""

    def statistic(scored: Scored, targets: Array, weights: Array) -> PyTree:
        lengths = jnp.asarray(token_bytes, jnp.float32)[targets]
        return {
            'nats': _weighted_sum(scored.nats, weights),
            'bytes': _weighted_sum(lengths, weights),
        }

    return statistic


def target_moments(predictions: Array, targets: Array, weights: Array) -> PyTree:
    """One row, [1, O], of what R² needs: residuals, and moments about a centre of the batch.

    The centre is close to the mean, so that a large mean does not cancel the variance away, and
    is exact where the targets are constant.
    """
    axes = tuple(range(weights.ndim))
    present = jnp.broadcast_to((weights != 0)[..., None], targets.shape)
    lowest = jnp.min(targets, axes, keepdims=True, where=present, initial=jnp.inf)
    mean_above = _weighted_sum(targets - lowest, weights) / jnp.maximum(weights.sum(), 1e-30)
    centre = lowest + mean_above.reshape(lowest.shape)
    offsets = targets - centre
    row = {
        'weight': weights.sum(),
        'centre': centre.reshape(-1),
        'sum': _weighted_sum(offsets, weights),
        'squares': _weighted_sum(offsets**2, weights),
        'residual': _weighted_sum(squared_error(predictions, targets), weights),
    }
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (1, targets.shape[-1])), row)


def _weighted_sum(values: Array, weights: Array) -> Array:
    """Sum of weights [...] times values [..., *rest] over the leading axes: [*rest]."""
    axes = tuple(range(weights.ndim))
    weights = weights.reshape(weights.shape + (1,) * (values.ndim - weights.ndim))
    return jnp.where(weights == 0, 0, weights * values).sum(axes)  # padding may hold nan


def _confusion(
    targets: Array, predictions: Array, unknown: Array, weights: Array, num_classes: int
) -> Array:
    """Weight of each pair (target, prediction); all nan if a prediction is unknown."""
    empty = jnp.zeros((num_classes, num_classes), jnp.float32)
    # A scatter rather than a product of one-hots: 80 times faster at C = 1000 on a CPU, and
    # partitioned as well (one all-reduce of the matrix).
    counts = empty.at[targets.astype(int), predictions.astype(int)].add(weights)
    return jnp.where((unknown & (weights != 0)).any(), jnp.nan, counts)


def _calibration_bins(confidence: Array, outcome: Array, weights: Array) -> Array:
    """Sums of (weight, confidence, outcome) over bins of equal width: [*labels, bins, 3].

    A confidence on an edge belongs to the bin below it (Guo et al. 2017, section 2).
    """
    bins = jnp.maximum(jnp.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0)
    member = jax.nn.one_hot(bins, CALIBRATION_BINS)[..., None]
    columns = jnp.stack([jnp.ones_like(confidence), confidence, outcome], axis=-1)
    return _weighted_sum(member * columns[..., None, :], weights)
