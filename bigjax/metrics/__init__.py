"""Metrics, exact over batches, microbatches and hosts.

A metric is a formula of a statistic. The statistic is computed inside jit from each batch and
added up; where a formula needs more than sums, rows are gathered instead. Formulas run once, on
the host, in float64. The metrics of one statistic form a `MetricGroup` and share its cost:

    groups = make(('accuracy', 'f1_macro', 'auc'), 'multiclass', num_classes=10)
    totals = None
    for outputs, targets, weights in batches:
        totals = accumulate(groups, totals, update(groups, outputs, targets, weights))
    values = compute(groups, totals)  # {'accuracy': .98, 'f1_macro': .97, 'auc': .99}

Outputs are logits (predictions, in a regression) of any dtype. Weights [...] weigh the examples
or tokens; 0 marks padding, whose outputs and targets may be anything. C classes, O outputs:

    kind            outputs             targets
    binary          [...] or [..., 1]   0 or 1, [...] or [..., 1]
    multiclass      [..., C]            ids [...] or one-hot [..., C]
    multilabel      [..., C]            0 or 1, [..., C]
    language_model  [..., C], `Scored`  ids [...]
    regression      [...] or [..., O]   as the outputs

Definitions are scikit-learn's, with its sample weights, over the labels range(C), those that
never occur included. Where logits tie, the lower class is predicted and ranks higher; a binary
logit of 0 is a negative. A ratio with a denominator of zero is 0 in precision, recall and F1
(scikit-learn's `zero_division=0`) and nan elsewhere: AUC without a positive or a negative, average
precision without a positive (and their means over classes then), R² of constant targets, any mean
over no examples. An output that is nan is a miss in top-k (so in multi-class accuracy) and in
subset accuracy; all else that it enters is nan.
"""

from bigjax.metrics.groups import KINDS, MetricGroup, accumulate, compute, make, update
from bigjax.metrics.statistics import Scored, score

__all__ = ['KINDS', 'MetricGroup', 'Scored', 'accumulate', 'compute', 'make', 'score', 'update']
