"""The table of metrics, and how a batch's statistics become totals and then values."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from bigjax import losses
from bigjax.errors import ConfigError, nearest
from bigjax.metrics import formulas as f
from bigjax.metrics import statistics as s

PyTree = Any
Formula = Callable[[Any], Any]
Align = Callable[[Any, Array, Array], tuple[Any, Array]]


@dataclass(frozen=True)
class MetricGroup:
    """The metrics that follow from one statistic.

    `update` runs inside jit on one batch. Its leaves are added over batches or, with `gather`,
    concatenated along their first axis: a row an example, or a row a batch. On the host `prepare`
    sees the totals, in float64, and each formula what `prepare` returns.
    """

    update: s.Statistic
    formulas: dict[str, Formula]
    prepare: Formula = lambda totals: totals
    gather: bool = False


def make(
    names: Iterable[str], kind: str, num_classes: int = 1, token_bytes: ArrayLike | None = None
) -> dict[str, MetricGroup]:
    """The groups that hold the metrics `names` of a `kind` of task (a key of KINDS).

    `bits_per_byte` exists where `token_bytes` [C] tells the length in bytes of every token (ones
    for a byte-level vocabulary). Raises ConfigError for a metric that this task does not have.
    """
    names = tuple(names)
    align, groups = KINDS[kind]
    if token_bytes is not None:
        bits = MetricGroup(s.nats_and_bytes(token_bytes), _named(f.bits_per_byte))
        groups = {**groups, 'bits_per_byte': bits}
    known = {name for group in groups.values() for name in group.formulas}
    known -= {f'top_{k}' for k in s.TOP_K if k >= num_classes}  # always 1
    for name in names:
        if name not in known:
            raise ConfigError(f'no metric {name!r} for a {kind} task; {nearest(name, known)}')
    chosen = {}
    for key, group in groups.items():
        wanted = {name: group.formulas[name] for name in names if name in group.formulas}
        if wanted:
            chosen[key] = replace(group, update=_aligned(align, group.update), formulas=wanted)
    return chosen


def update(
    groups: dict[str, MetricGroup], outputs: Any, targets: Array, weights: Array
) -> dict[str, PyTree]:
    """The statistics of one batch; call it inside jit."""
    return {key: group.update(outputs, targets, weights) for key, group in groups.items()}


def accumulate(
    groups: dict[str, MetricGroup], totals: dict[str, Any] | None, updates: dict[str, PyTree]
) -> dict[str, Any]:
    """The totals (None before the first batch) with one more batch's updates, on the host."""
    merged = {}
    for key, group in groups.items():
        if group.gather:
            batches = totals[key] if totals else []
            merged[key] = [*batches, jax.tree.map(np.asarray, updates[key])]
        else:
            sums = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), updates[key])
            merged[key] = jax.tree.map(np.add, totals[key], sums) if totals else sums
    return merged


def compute(
    groups: dict[str, MetricGroup], totals: dict[str, Any]
) -> dict[str, float | np.ndarray]:
    """The value of every metric; arrays for confusion_matrix, roc_curve and *_per_class."""
    values = {}
    for key, group in groups.items():
        total = totals[key]
        if group.gather:
            total = jax.tree.map(lambda *rows: np.concatenate(rows, dtype=np.float64), *total)
        prepared = group.prepare(total)
        for name, formula in group.formulas.items():
            value = formula(prepared)
            values[name] = value if np.ndim(value) else float(value)
    return values


def _aligned(align: Align, statistic: s.Statistic) -> s.Statistic:
    def update(outputs: Any, targets: Array, weights: Array) -> PyTree:
        outputs = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), outputs)
        weights = weights.astype(jnp.float32)
        return statistic(*align(outputs, targets, weights), weights)

    return update


def _mean_group(function: Callable[[Any, Array], Array], **formulas: Formula) -> MetricGroup:
    """Formulas of the weighted mean of a function of (outputs, targets)."""
    return MetricGroup(s.mean_of(function), formulas, prepare=f.weighted_mean)


def _confusion_group(statistic: s.Statistic, prepare: Formula, **extra: Formula) -> MetricGroup:
    """The confusion matrix of several classes or labels, and the averages of its ratios."""
    formulas = _named(f.confusion_matrix) | extra
    for formula in (f.precision, f.recall, f.f1):
        formulas |= {
            f'{formula.__name__}_per_class': formula,
            f'{formula.__name__}_macro': f.mean(formula),
            f'{formula.__name__}_micro': f.micro(formula),
        }
    return MetricGroup(statistic, formulas, prepare)


def _ranking_group(**formulas: Formula) -> MetricGroup:
    """Formulas of the rankings; nan in a mean where one of them is undefined."""
    means = {'auc': f.mean(f.auc), 'average_precision': f.mean(f.average_precision)}
    return MetricGroup(s.scored_rows, means | formulas, prepare=f.rankings, gather=True)


def _named(*formulas: Callable[[Any], Any]) -> dict[str, Formula]:
    return {formula.__name__: formula for formula in formulas}


_CALIBRATION = _named(f.calibration_error, f.calibration_curve)
_TOP_K = {'accuracy' if k == 1 else f'top_{k}': itemgetter(i) for i, k in enumerate(s.TOP_K)}
_CLASS_RANKING = _ranking_group(
    auc_per_class=f.auc, average_precision_per_class=f.average_precision
)

_BINARY = {
    'log_loss': _mean_group(losses.sigmoid_cross_entropy, log_loss=np.mean),
    'confusion': MetricGroup(
        s.binary_confusion,
        _named(f.confusion_matrix, f.accuracy, f.precision, f.recall, f.f1),
        f.label_outcomes,
    ),
    'calibration': MetricGroup(s.label_calibration, _CALIBRATION),
    'ranking': _ranking_group(roc_curve=f.roc_curve),
}
_MULTICLASS = {
    'top_k': _mean_group(s.top_hits, **_TOP_K),
    'log_loss': _mean_group(losses.softmax_cross_entropy, log_loss=np.mean),
    'confusion': _confusion_group(s.class_confusion, f.class_outcomes),
    'calibration': MetricGroup(s.class_calibration, _CALIBRATION),
    'ranking': _CLASS_RANKING,
}
_MULTILABEL = {
    'subset_accuracy': _mean_group(s.all_labels_hit, subset_accuracy=np.mean),
    'log_loss': _mean_group(losses.sigmoid_cross_entropy, log_loss=np.mean),
    'confusion': _confusion_group(s.label_confusion, f.label_outcomes, label_accuracy=f.accuracy),
    'calibration': MetricGroup(s.label_calibration, _CALIBRATION),
    'ranking': _CLASS_RANKING,
}
_LANGUAGE_MODEL = {
    'top_k': _mean_group(s.token_hits, **_TOP_K),
    'log_loss': _mean_group(lambda scored, _: scored.nats, log_loss=np.mean, perplexity=np.exp),
    'calibration': MetricGroup(s.token_calibration, _CALIBRATION),
}
_REGRESSION = {
    'squared': _mean_group(losses.squared_error, mse=np.mean, rmse=f.mean(np.sqrt)),
    'absolute': _mean_group(losses.absolute_error, mae=np.mean),
    'moments': MetricGroup(s.target_moments, _named(f.r2), gather=True),
}

# Of each kind of task: how its batches are aligned, and its groups.
KINDS: dict[str, tuple[Align, dict[str, MetricGroup]]] = {
    'binary': (s.align_binary, _BINARY),
    'multiclass': (s.align_classes, _MULTICLASS),
    'multilabel': (s.align_labels, _MULTILABEL),
    'language_model': (s.align_tokens, _LANGUAGE_MODEL),
    'regression': (s.align_regression, _REGRESSION),
}
