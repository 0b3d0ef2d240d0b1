"""Evaluation that counts every example exactly once, and what the report shows of it."""

from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import chain
from typing import Any

import jax
import numpy as np

from bigjax import metrics
from bigjax.data import batches
from bigjax.data.core import Batch, DataSpec, Source
from bigjax.metrics import MetricGroup
from bigjax.sharding.mesh import process_rows

EvalStep = Callable[[Any, Batch], dict[str, Any]]


def evaluate(
    step: EvalStep,
    groups: dict[str, MetricGroup],
    variables: Any,
    source: Source,
    batch_size: int,
    sharding: jax.sharding.NamedSharding,
    stop: Callable[[], object] = lambda: None,
) -> dict[str, Any] | None:
    """The loss and every metric over all rows of `source`, summed in float64 on the host.

    step: a jitted `eval_step` whose outputs are replicated. Each batch's sums are fetched after the
    next batch is dispatched, so the devices never wait for the host. None if `stop()`,
    called once a batch, ever says so.
    """
    rows = process_rows(sharding, batch_size)
    count = batches.num_eval_batches(source, batch_size)

    def make(index: int) -> Batch:
        return batches.to_device(
            batches.eval_batch(source, index, batch_size, rows), sharding, batch_size
        )

    loss = weight = 0.0
    totals: dict[str, Any] | None = None
    waiting: dict[str, Any] | None = None
    with closing(batches.prefetched(make, 0, count, depth=2)) as stream:
        for batch in chain(stream, [None]):
            dispatched = None if batch is None else step(variables, batch)
            if waiting is not None:
                sums = jax.device_get(waiting)
                loss += float(sums['loss'])
                weight += float(sums['weight'])
                totals = metrics.accumulate(groups, totals, sums['metrics'])
            waiting = dispatched
            if stop():
                return None
    values = metrics.compute(groups, totals) if totals is not None else {}
    return {'loss': loss / weight if weight else float('nan'), **values}


def scalars(values: dict[str, Any], split: str) -> dict[str, float]:
    """The numbers among evaluated values, under the keys of metrics.jsonl: `val/accuracy`."""
    return {f'{split}/{name}': value for name, value in values.items() if np.ndim(value) == 0}


def curves(values: dict[str, Any]) -> dict[str, Any]:
    """The arrays among them (confusion matrix, ROC curve, values per class) as plain lists."""
    arrays = {name: np.asarray(value) for name, value in values.items() if np.ndim(value)}
    plain = {name: array.tolist() for name, array in arrays.items()}
    if 'roc_curve' in arrays:
        false_rate, true_rate, _ = arrays['roc_curve']  # thresholds begin at infinity: not JSON
        plain['roc_curve'] = {'fpr': false_rate.tolist(), 'tpr': true_rate.tolist()}
    if 'calibration_curve' in arrays:
        names = ('confidence', 'accuracy', 'count')
        rows = np.nan_to_num(arrays['calibration_curve']).tolist()  # empty bins have no mean
        plain['calibration_curve'] = dict(zip(names, rows, strict=True))
    return plain


def class_ids(targets: np.ndarray) -> np.ndarray:
    """Class ids [B] of ids [B] or one-hot rows [B, C]."""
    return targets.argmax(-1) if targets.ndim > 1 else targets


def samples(
    kind: str,
    spec: DataSpec,
    rows: Batch,
    predictions: np.ndarray,
    decode: Callable[[np.ndarray], str] | None,
) -> list[dict[str, Any]]:
    """A few rows as a person reads them: input, target, prediction and the chance given to it."""
    inputs, targets = rows['inputs'], np.asarray(rows['targets'])
    return [
        {
            'input': _readable(jax.tree.map(lambda leaf, i=i: leaf[i], inputs), spec, decode),
            **_answer(kind, spec, targets[i], predictions[i]),
        }
        for i in range(len(targets))
    ]


def _readable(
    row: Any, spec: DataSpec, decode: Callable[[np.ndarray], str] | None
) -> dict[str, Any]:
    if decode is not None:
        return {'kind': 'text', 'text': decode(row)}
    row = np.asarray(row)
    if row.ndim == 3:
        pixels = row if row.dtype == np.uint8 else np.clip(row * 255, 0, 255).astype(np.uint8)
        return {'kind': 'image', 'pixels': pixels.tolist()}
    values = row.reshape(-1)
    names: Sequence[str] = spec.feature_names or [f'feature {i}' for i in range(len(values))]
    return {'kind': 'row', 'values': {n: float(v) for n, v in zip(names, values, strict=False)}}


def _answer(kind: str, spec: DataSpec, target: Any, prediction: np.ndarray) -> dict[str, Any]:
    def name(index: int) -> str:
        return spec.class_names[index] if spec.class_names else str(index)

    if kind == 'regression':
        return {'target': _numbers(target), 'prediction': _numbers(prediction)}
    if kind == 'multilabel':
        chosen = [name(int(i)) for i in np.flatnonzero(prediction > 0.5)]
        right = [name(int(i)) for i in np.flatnonzero(target > 0.5)]
        return {'target': ', '.join(right), 'prediction': ', '.join(chosen)}
    chosen_class = int(np.argmax(prediction))
    target_class = int(np.argmax(target)) if np.ndim(target) else int(target)
    return {
        'target': name(target_class),
        'prediction': name(chosen_class),
        'score': float(prediction[chosen_class]),
    }


def _numbers(value: Any) -> str:
    return ', '.join(f'{number:.4g}' for number in np.ravel(value))
