"""From the totals of statistics to the values of metrics: numpy in float64, once, on the host.

C classes or labels; a formula has a value for each, and `mean` of it has one for them all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

PyTree = Any


def ratio(numerator: Any, denominator: Any, undefined: float = np.nan) -> np.ndarray:
    """Their quotient, and `undefined` where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    filled = np.full(numerator.shape, undefined, np.float64)
    return np.divide(numerator, denominator, out=filled, where=denominator != 0)


def mean(formula: Callable[[Any], np.ndarray]) -> Callable[[Any], Any]:
    """The mean of a formula over classes, labels or outputs: the macro average of a ratio."""
    return lambda total: formula(total).mean()


def weighted_mean(total: PyTree) -> np.ndarray:
    """Over the examples, of each element of an example."""
    return ratio(total['sum'], total['weight'])


def bits_per_byte(total: PyTree) -> Any:
    """Loss in bits over bytes, whatever the vocabulary; a token of no bytes still adds its loss."""
    return ratio(total['nats'], total['bytes']) / np.log(2)


def calibration_curve(bins: np.ndarray) -> np.ndarray:
    """Mean confidence, mean outcome and weight of each bin, all labels together: [3, bins]."""
    weight, confidence, outcome = np.moveaxis(bins.reshape(-1, *bins.shape[-2:]).sum(0), -1, 0)
    return np.stack([ratio(confidence, weight), ratio(outcome, weight), weight])


def calibration_error(bins: np.ndarray) -> Any:
    """Expected |frequency - confidence| of a bin (Guo et al. 2017, eq. 3), averaged over labels."""
    weight, confidence, outcome = np.moveaxis(bins, -1, 0)
    return ratio(np.abs(outcome - confidence).sum(-1), weight.sum(-1)).mean()


class Outcomes(NamedTuple):
    """A confusion matrix, and what it says of each class: [*classes]."""

    confusion: np.ndarray
    true_positive: np.ndarray
    false_positive: np.ndarray
    false_negative: np.ndarray


def class_outcomes(confusion: np.ndarray) -> Outcomes:
    """Each class against the rest, in a matrix [C, C]."""
    right = np.diagonal(confusion)
    return Outcomes(confusion, right, confusion.sum(0) - right, confusion.sum(1) - right)


def label_outcomes(confusion: np.ndarray) -> Outcomes:
    """The positives of each label, in matrices [*labels, 2, 2]."""
    return Outcomes(confusion, confusion[..., 1, 1], confusion[..., 0, 1], confusion[..., 1, 0])


def micro(formula: Callable[[Outcomes], np.ndarray]) -> Callable[[Outcomes], Any]:
    """The micro average of a ratio: that of the outcomes of all classes together."""
    return lambda outcomes: formula(
        Outcomes(outcomes.confusion, *(counts.sum(-1) for counts in outcomes[1:]))
    )


def precision(outcomes: Outcomes) -> np.ndarray:
    """Of what was called positive, the part that is: [*classes]."""
    right = outcomes.true_positive
    return ratio(right, right + outcomes.false_positive, undefined=0)


def recall(outcomes: Outcomes) -> np.ndarray:
    """Of what is positive, the part that was called so: [*classes]."""
    right = outcomes.true_positive
    return ratio(right, right + outcomes.false_negative, undefined=0)


def f1(outcomes: Outcomes) -> np.ndarray:
    """The harmonic mean of precision and recall: [*classes]."""
    right = 2 * outcomes.true_positive
    return ratio(right, right + outcomes.false_positive + outcomes.false_negative, undefined=0)


def confusion_matrix(outcomes: Outcomes) -> np.ndarray:
    """Of classes [C, C], of labels [*labels, 2, 2]: a row a target, a column a prediction."""
    return outcomes.confusion


def accuracy(outcomes: Outcomes) -> Any:
    """The part that is right, averaged over labels."""
    matrices = outcomes.confusion
    return ratio(np.trace(matrices, axis1=-2, axis2=-1), matrices.sum((-2, -1))).mean()


class Ranking(NamedTuple):
    """The weight of negatives and of positives at or above each distinct score.

    From the highest score down, after a first point above them all; ties make one point.
    """

    thresholds: np.ndarray
    false_positive: np.ndarray
    true_positive: np.ndarray


def rankings(rows: PyTree) -> list[Ranking]:
    """For binary scores [N] one ranking; for [N, C] one a label, or a class against the rest.

    A class ranks by its log probability in float64: in float32 confident models tie at 1.
    """
    present = rows['weights'] != 0
    scores, targets, weights = (rows[key][present] for key in ('scores', 'targets', 'weights'))
    if targets.ndim < scores.ndim:
        scores = scores - scores.max(-1, keepdims=True)
        scores = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        targets = targets[:, None] == np.arange(scores.shape[-1])
    by_label = zip(np.atleast_2d(scores.T), np.atleast_2d(targets.T) > 0, strict=True)
    return [_ranking(scores, positives, weights) for scores, positives in by_label]


def _ranking(scores: np.ndarray, positives: np.ndarray, weights: np.ndarray) -> Ranking:
    if np.isnan(scores).any():
        weights = np.full_like(weights, np.nan)  # and so is all that follows
    order = np.argsort(-scores)
    scores, positives, weights = scores[order], positives[order], weights[order]
    last_of_tie = np.append(scores[:-1] != scores[1:], True)[: len(scores)]
    false, true = (np.cumsum(weights * kind)[last_of_tie] for kind in (~positives, positives))
    return Ranking(np.append(np.inf, scores[last_of_tie]), np.append(0, false), np.append(0, true))


def roc_curve(rankings: list[Ranking]) -> np.ndarray:
    """False positive rate, true positive rate and threshold (a logit) by point: [3, points]."""
    ((thresholds, false, true),) = rankings
    return np.stack([ratio(false, false[-1]), ratio(true, true[-1]), thresholds])


def auc(rankings: list[Ranking]) -> np.ndarray:
    """The area under each ROC curve, by trapezoids: [C]."""
    return np.array(
        [
            ratio((np.diff(false) * (true[1:] + true[:-1])).sum() / 2, false[-1] * true[-1])
            for _, false, true in rankings
        ]
    )


def average_precision(rankings: list[Ranking]) -> np.ndarray:
    """The sum of precision times the step in recall: [C]."""
    return np.array(
        [
            ratio((np.diff(true) * ratio(true, true + false)[1:]).sum(), true[-1])
            for _, false, true in rankings
        ]
    )


def r2(rows: PyTree) -> Any:
    """Mean over outputs of 1 - residual / variation about the mean, from a row [O] a batch.

    The variation is that within batches and that between them (Chan, Golub and LeVeque 1983).
    """
    rows = {key: leaf[rows['weight'][:, 0] != 0] for key, leaf in rows.items()}
    weight, shift = rows['weight'], ratio(rows['sum'], rows['weight'])
    within = rows['squares'] - rows['sum'] * shift
    means = rows['centre'] - rows['centre'][:1] + shift
    between = weight * (means - ratio((weight * means).sum(0), weight.sum(0))) ** 2
    return 1 - ratio(rows['residual'].sum(0), (within + between).sum(0)).mean()
