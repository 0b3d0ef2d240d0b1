"""Metrics against scikit-learn in float64, on ties, padding, absent classes and odd batches."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.special import expit, log_softmax, softmax

from bigjax import metrics
from bigjax.errors import ConfigError

N, C = 90, 12
PADDED = 32  # rows of a batch
NUM_LABELS = 4
AVERAGED = ('precision', 'recall', 'f1')
NAMES = {
    'binary': (
        *AVERAGED,
        *('accuracy', 'log_loss', 'calibration_error', 'confusion_matrix'),
        *('auc', 'average_precision', 'roc_curve'),
    ),
    'multiclass': (
        *(f'{name}_{average}' for name in AVERAGED for average in ('macro', 'micro', 'per_class')),
        *('accuracy', 'top_2', 'top_5', 'log_loss', 'calibration_error', 'confusion_matrix'),
        *('auc', 'auc_per_class', 'average_precision', 'average_precision_per_class'),
    ),
    'regression': ('mse', 'mae', 'rmse', 'r2'),
    'language_model': ('accuracy', 'top_5', 'log_loss', 'perplexity', 'calibration_error'),
}
NAMES['multilabel'] = (
    *(set(NAMES['multiclass']) - {'accuracy', 'top_2', 'top_5'}),
    *('subset_accuracy', 'label_accuracy'),
)


def examples(kind, seed=0):
    """(outputs, targets, weights): scores on a grid, so full of ties; some weights are zero."""
    rng = np.random.default_rng(seed)
    weights = rng.choice([0, 0.5, 1, 1, 2.25], size=N).astype(np.float32)
    if kind == 'regression':
        targets = rng.normal(size=(N, 3)).astype(np.float32)
        return targets + rng.normal(size=(N, 3)).astype(np.float32) / 2, targets, weights
    shape = {'binary': (N,), 'multilabel': (N, NUM_LABELS)}.get(kind, (N, C))
    outputs = (rng.integers(-4, 5, size=shape) / 2).astype(np.float32)
    if kind in ('binary', 'multilabel'):
        targets = (outputs + rng.normal(scale=2, size=shape) > 0.5).astype(np.int32)
        return outputs, targets, weights
    outputs[:, 3] -= 20  # never predicted
    targets = rng.integers(C, size=N).astype(np.int32)
    targets[: N // 2] = outputs[: N // 2].argmax(-1)
    targets[:C] = np.arange(C)
    weights[:C] = 1
    return outputs, targets, weights


def padded(arrays, rows=PADDED):
    """Each array with rows of nan (or of a bad id) up to `rows`; the last array is the weights."""

    def pad(array, value):
        return np.pad(
            array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1), constant_values=value
        )

    outputs, targets, weights = arrays
    junk = -1 if targets.dtype == np.int32 else np.nan
    return pad(outputs, np.nan), pad(targets, junk), pad(weights, 0)


def evaluate(names, kind, arrays, bounds=(5, 37, 37, 62), **options):
    """The metrics of arrays cut at `bounds` into batches of several sizes, all padded."""
    groups, step = compiled(tuple(names), kind, **{'num_classes': C} | options)
    totals = None
    for batch in zip(*(np.split(array, bounds) for array in arrays), strict=True):
        totals = metrics.accumulate(groups, totals, step(*padded(batch)))
    return metrics.compute(groups, totals)


@cache
def compiled(names, kind, **options):
    groups = metrics.make(names, kind, **options)
    return groups, jax.jit(partial(metrics.update, groups))


def expected_calibration_error(confidence, outcome, weights):
    """The definition, read aloud."""
    error = 0.0
    for i in range(15):
        inside = [j for j, c in enumerate(confidence) if i / 15 < c <= (i + 1) / 15]
        if weight := weights[inside].sum():
            frequency = np.average(outcome[inside], weights=weights[inside])
            gap = frequency - np.average(confidence[inside], weights=weights[inside])
            error += weight / weights.sum() * abs(gap)
    return error


def averaged_ratios(targets, predictions, **options):
    expected = {}
    for name in AVERAGED:
        score = partial(getattr(sk, f'{name}_score'), targets, predictions, zero_division=0)
        for average in ('macro', 'micro', None):
            expected[f'{name}_{average or "per_class"}'] = score(average=average, **options)
    return expected


def oracle_binary(outputs, targets, weights):
    weighted = {'sample_weight': weights}
    predictions, p = outputs > 0, expit(np.float64(outputs))
    return {
        **{
            name: getattr(sk, f'{name}_score')(targets, predictions, zero_division=0, **weighted)
            for name in AVERAGED
        },
        'accuracy': sk.accuracy_score(targets, predictions, **weighted),
        'confusion_matrix': sk.confusion_matrix(targets, predictions, **weighted),
        'log_loss': sk.log_loss(targets, p, **weighted),
        'calibration_error': expected_calibration_error(p, targets, weights),
        'auc': sk.roc_auc_score(targets, outputs, **weighted),
        'average_precision': sk.average_precision_score(targets, outputs, **weighted),
        'roc_curve': np.stack(sk.roc_curve(targets, outputs, drop_intermediate=False, **weighted)),
    }


def oracle_multiclass(outputs, targets, weights):
    weighted = {'sample_weight': weights}
    predictions, p = outputs.argmax(-1), softmax(np.float64(outputs), axis=-1)
    one_hot = np.eye(C)[targets]
    right, confidence = predictions == targets, p.max(-1)
    # Reversed, because scikit-learn ranks the higher of two tied classes first, argmax the lower.
    top = partial(
        sk.top_k_accuracy_score, C - 1 - targets, outputs[:, ::-1], labels=range(C), **weighted
    )
    return {
        **averaged_ratios(targets, predictions, labels=range(C), **weighted),
        'accuracy': sk.accuracy_score(targets, predictions, **weighted),
        'top_2': top(k=2),
        'top_5': top(k=5),
        'confusion_matrix': sk.confusion_matrix(targets, predictions, labels=range(C), **weighted),
        'log_loss': sk.log_loss(targets, p, labels=range(C), **weighted),
        'calibration_error': expected_calibration_error(confidence, right, weights),
        'auc': sk.roc_auc_score(targets, p, multi_class='ovr', labels=range(C), **weighted),
        'auc_per_class': sk.roc_auc_score(one_hot, p, average=None, **weighted),
        'average_precision': sk.average_precision_score(one_hot, p, **weighted),
        'average_precision_per_class': sk.average_precision_score(
            one_hot, p, average=None, **weighted
        ),
    }


def oracle_multilabel(outputs, targets, weights):
    weighted = {'sample_weight': weights}
    predictions, p = (outputs > 0).astype(int), expit(np.float64(outputs))

    def by_label(score):
        return [score(targets[:, i], p[:, i]) for i in range(NUM_LABELS)]

    return {
        **averaged_ratios(targets, predictions, **weighted),
        'subset_accuracy': sk.accuracy_score(targets, predictions, **weighted),
        'label_accuracy': 1 - sk.hamming_loss(targets, predictions, **weighted),
        'confusion_matrix': sk.multilabel_confusion_matrix(targets, predictions, **weighted),
        'log_loss': np.mean(by_label(partial(sk.log_loss, **weighted))),
        'calibration_error': np.mean(
            by_label(lambda t, p: expected_calibration_error(p, t, weights))
        ),
        'auc': sk.roc_auc_score(targets, outputs, **weighted),
        'auc_per_class': sk.roc_auc_score(targets, outputs, average=None, **weighted),
        'average_precision': sk.average_precision_score(targets, outputs, **weighted),
        'average_precision_per_class': sk.average_precision_score(
            targets, outputs, average=None, **weighted
        ),
    }


def oracle_regression(outputs, targets, weights):
    arguments = {'y_true': np.float64(targets), 'y_pred': np.float64(outputs)}
    return {
        name: score(**arguments, sample_weight=weights)
        for name, score in {
            'mse': sk.mean_squared_error,
            'mae': sk.mean_absolute_error,
            'rmse': sk.root_mean_squared_error,
            'r2': sk.r2_score,
        }.items()
    }


def oracle_language_model(outputs, targets, weights):
    expected = oracle_multiclass(outputs, targets, weights)
    expected['perplexity'] = np.exp(expected['log_loss'])
    return {name: expected[name] for name in NAMES['language_model']}


ORACLES = {
    'binary': oracle_binary,
    'multiclass': oracle_multiclass,
    'multilabel': oracle_multilabel,
    'regression': oracle_regression,
    'language_model': oracle_language_model,
}


def assert_close(actual, expected, rtol=2e-6):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol, atol=1e-7, err_msg=name)


@pytest.mark.parametrize('kind', metrics.KINDS)
@pytest.mark.parametrize('weighted', [True, False])
def test_every_metric_agrees_with_its_oracle(kind, weighted):
    outputs, targets, weights = examples(kind)
    if not weighted:
        weights = np.ones_like(weights)
    actual = evaluate(NAMES[kind], kind, (outputs, targets, weights))
    kept = weights > 0
    assert_close(actual, ORACLES[kind](outputs[kept], targets[kept], weights[kept]))


def test_the_tests_name_every_metric():
    for kind, (_, groups) in metrics.KINDS.items():
        known = {name for group in groups.values() for name in group.formulas}
        elsewhere = {'calibration_curve', *(f'top_{k}' for k in range(101))}
        untested = known - set(NAMES[kind]) - elsewhere
        assert not untested, kind


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, N), max_size=8), st.sampled_from(['multiclass', 'regression']))
def test_any_split_into_batches_gives_the_same_values(cuts, kind):
    thirds = (30, 60)
    arrays = examples(kind)
    whole = evaluate(NAMES[kind], kind, arrays, thirds)
    bounds = sorted({*cuts, *thirds})
    assert_close(evaluate(NAMES[kind], kind, arrays, bounds), whole)


@pytest.mark.parametrize('kind', metrics.KINDS)
def test_sharded_batches_give_the_same_values(kind):
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    rows, replicated = (
        NamedSharding(mesh, PartitionSpec('data')),
        NamedSharding(mesh, PartitionSpec()),
    )
    arrays = padded(examples(kind), rows=96)
    groups = metrics.make(NAMES[kind], kind, num_classes=C)
    step = jax.jit(
        partial(metrics.update, groups), in_shardings=(rows, rows, rows), out_shardings=replicated
    )
    totals = metrics.accumulate(groups, None, step(*jax.device_put(arrays, rows)))
    assert_close(metrics.compute(groups, totals), evaluate(NAMES[kind], kind, examples(kind)))


def test_sequences_are_batches_of_tokens():
    outputs, targets, weights = examples('multiclass')
    sequences = (outputs.reshape(18, 5, C), targets.reshape(18, 5), weights.reshape(18, 5))
    assert_close(
        evaluate(NAMES['multiclass'], 'multiclass', sequences, bounds=(3, 10)),
        evaluate(NAMES['multiclass'], 'multiclass', (outputs, targets, weights)),
    )


def test_one_hot_targets_and_a_trailing_axis():
    outputs, targets, weights = examples('multiclass')
    one_hot = np.eye(C, dtype=np.int32)[targets]
    names = ('accuracy', 'f1_macro', 'log_loss', 'average_precision')
    assert_close(
        evaluate(names, 'multiclass', (outputs, one_hot, weights)),
        evaluate(names, 'multiclass', (outputs, targets, weights)),
    )
    outputs, targets, weights = examples('binary')
    for columns in ((outputs[:, None], targets), (outputs[:, None], targets[:, None])):
        assert_close(
            evaluate(('auc', 'f1'), 'binary', (*columns, weights)),
            evaluate(('auc', 'f1'), 'binary', (outputs, targets, weights)),
        )


def test_a_single_output_may_lack_its_axis():
    outputs, targets, _ = examples('regression')
    weights = np.ones(N, np.float32)
    actual = evaluate(NAMES['regression'], 'regression', (outputs[:, :1], targets[:, 0], weights))
    assert_close(actual, oracle_regression(outputs[:, 0], targets[:, 0], weights))


def test_outputs_in_half_precision_lose_nothing_more():
    outputs, targets, weights = examples('multiclass')  # the grid is exact in bfloat16
    names = ('accuracy', 'top_5', 'log_loss', 'calibration_error', 'auc')
    halves = (outputs.astype(jnp.bfloat16), targets, weights)
    assert_close(
        evaluate(names, 'multiclass', halves),
        evaluate(names, 'multiclass', (outputs, targets, weights)),
    )


@pytest.mark.parametrize('mean', [1e6, -1e6])
def test_r2_survives_a_large_mean(mean):
    outputs, targets, weights = examples('regression')
    outputs, targets = (np.float32(array + mean) for array in (outputs, targets))
    actual = evaluate(('r2',), 'regression', (outputs, targets, weights))['r2']
    expected = oracle_regression(outputs, targets, weights)['r2']
    assert 0.5 < expected < 0.9
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_r2_survives_an_outlier_in_a_large_batch():
    rows = 2**14
    targets = np.random.default_rng(0).normal(size=(rows, 1)).astype(np.float32)
    outputs, weights = targets - 100, np.ones(rows, np.float32)
    targets[0] = -1e4
    groups, step = compiled(('r2',), 'regression')
    totals = metrics.accumulate(groups, None, step(outputs, targets, weights))
    expected = oracle_regression(outputs, targets, weights)['r2']
    np.testing.assert_allclose(metrics.compute(groups, totals)['r2'], expected, rtol=1e-6)


def test_r2_survives_batches_of_very_different_means():
    outputs, targets, weights = examples('regression')
    drift = np.repeat([0, 1e4, -3e5], 30)[:, None].astype(np.float32)
    outputs, targets = outputs + drift * 1.5, targets + drift
    actual = evaluate(('r2',), 'regression', (outputs, targets, weights), (30, 60))['r2']
    expected = oracle_regression(outputs, targets, weights)['r2']
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_r2_of_constant_targets_is_nan():
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=N).astype(np.float32)
    weights = np.float32(10 ** rng.uniform(-5, 5, size=N))  # sums round, even in float64
    for constant in rng.normal(size=8).astype(np.float32):
        arrays = (outputs, np.full(N, constant), weights)
        assert np.isnan(evaluate(('r2',), 'regression', arrays, range(2, N, 2))['r2'])


def test_classes_that_are_absent_from_the_targets():
    outputs, targets, weights = examples('multiclass')
    targets = np.where(np.isin(targets, [2, 3]), 4, targets).astype(np.int32)  # 3: nor predicted
    names = ('f1_macro', 'f1_per_class', 'recall_per_class', 'log_loss')
    actual = evaluate(names, 'multiclass', (outputs, targets, weights))
    expected = oracle_multiclass_without_ranking(outputs, targets, weights)
    assert_close(actual, {name: expected[name] for name in names})
    assert actual['f1_per_class'][2] == actual['f1_per_class'][3] == 0

    ranked = evaluate(
        ('auc', 'auc_per_class', 'average_precision_per_class'),
        'multiclass',
        (outputs, targets, weights),
    )
    assert np.isnan(ranked['auc'])
    for name in ('auc_per_class', 'average_precision_per_class'):
        assert np.flatnonzero(np.isnan(ranked[name])).tolist() == [2, 3]


def oracle_multiclass_without_ranking(outputs, targets, weights):
    log_p = log_softmax(np.float64(outputs), axis=-1)
    return averaged_ratios(targets, outputs.argmax(-1), labels=range(C), sample_weight=weights) | {
        'log_loss': -np.average(log_p[np.arange(N), targets], weights=weights)
    }


@pytest.mark.parametrize('only', [0, 1])
def test_rank_metrics_of_one_class(only):
    outputs, targets, weights = examples('binary')
    arrays = (outputs, np.full_like(targets, only), weights)
    values = evaluate(('auc', 'average_precision', 'precision', 'recall'), 'binary', arrays)
    assert np.isnan(values['auc'])
    np.testing.assert_equal(values['average_precision'], 1.0 if only else np.nan)
    assert (values['recall'] > 0) == (values['precision'] > 0) == only


@pytest.mark.parametrize('kind', metrics.KINDS)
def test_without_examples_every_mean_is_nan(kind):
    outputs, targets, weights = examples(kind)
    values = evaluate(NAMES[kind], kind, (outputs, targets, 0 * weights))
    for name, value in values.items():
        if name.startswith(AVERAGED) or name == 'confusion_matrix':
            assert not np.any(value), name
        elif name != 'roc_curve':
            assert np.isnan(value).all(), name


@pytest.mark.parametrize('kind', metrics.KINDS)
def test_an_output_that_is_nan_is_a_miss_or_shows(kind):
    outputs, targets, weights = examples(kind)
    outputs[weights > 0] = np.nan
    values = evaluate(NAMES[kind], kind, (outputs, targets, weights))
    misses = {'top_2', 'top_5', 'subset_accuracy'}
    if kind in ('multiclass', 'language_model'):
        misses.add('accuracy')
    for name, value in values.items():
        assert value == 0 if name in misses else np.isnan(value).any(), name


def test_weights_that_are_not_one_a_token_are_refused():
    with pytest.raises(TypeError, match='reshape'):
        evaluate(
            ('accuracy',),
            'language_model',
            (np.zeros((8, 5, C)), np.zeros((8, 5), np.int32), np.ones(8)),
            (),
        )


def test_certainty_has_a_calibration_bin():
    logits = np.array([1e3, 1e3, -1e3, -1e3], np.float32)
    arrays = (logits, np.array([1, 0, 0, 0], np.int32), np.ones(4, np.float32))
    values = evaluate(('calibration_error',), 'binary', arrays, bounds=())
    assert values == {'calibration_error': 0.25}


def test_calibration_curve():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=200).astype(np.float32)
    targets = rng.integers(2, size=200).astype(np.int32)
    arrays = (logits, targets, np.ones(200, np.float32))
    bounds = range(20, 200, 20)
    curve = evaluate(('calibration_curve',), 'binary', arrays, bounds)['calibration_curve']
    confidence, outcome, weight = curve[:, curve[2] > 0]
    expected = sklearn.calibration.calibration_curve(targets, expit(logits), n_bins=15)
    np.testing.assert_allclose(outcome, expected[0], rtol=1e-6)
    np.testing.assert_allclose(confidence, expected[1], rtol=1e-6)
    assert weight.sum() == 200


def test_equal_logits_rank_the_lower_class_first():
    arrays = (
        np.zeros((4, 8), np.float32),
        np.array([0, 1, 4, 5], np.int32),
        np.ones(4, np.float32),
    )
    values = evaluate(('accuracy', 'top_2', 'top_5'), 'multiclass', arrays, (), num_classes=8)
    assert values == {'accuracy': 0.25, 'top_2': 0.5, 'top_5': 0.75}


def test_classes_rank_where_float32_probabilities_saturate():
    margin = np.array([20, 24, 28, 32], np.float32)  # all of probability 1 in float32
    logits = np.stack([margin, np.zeros(4, np.float32)], axis=-1)
    arrays = (logits, np.array([1, 1, 0, 0], np.int32), np.ones(4, np.float32))
    assert evaluate(('auc',), 'multiclass', arrays, (), num_classes=2) == {'auc': 1.0}


def test_bits_per_byte_is_independent_of_the_vocabulary():
    outputs, targets, weights = examples('language_model')
    lengths = np.arange(C)  # token 0 is special and stands for no byte
    values = evaluate(
        ('bits_per_byte', 'log_loss'),
        'language_model',
        (outputs, targets, weights),
        token_bytes=tuple(lengths),
    )
    bits = values['log_loss'] * weights.sum() / np.log(2)
    np.testing.assert_allclose(
        values['bits_per_byte'], bits / (weights * lengths[targets]).sum(), rtol=1e-6
    )


def test_a_long_evaluation_is_summed_in_float64():
    groups = metrics.make(('accuracy',), 'multiclass', num_classes=2)
    totals = None
    for weight in (2**24, 1, 1, 1):  # float32 has no 2**24 + 1
        weight = np.float32(weight)
        batch = {'top_k': {'sum': np.full(8, weight), 'weight': weight}}
        totals = metrics.accumulate(groups, totals, batch)
    assert totals['top_k']['weight'] == 2**24 + 3


def test_metrics_of_one_statistic_share_it():
    groups = metrics.make(
        ('confusion_matrix', 'f1_macro', 'recall_per_class', 'accuracy', 'top_5', 'auc'),
        'multiclass',
        num_classes=10,
    )
    assert {key: group.gather for key, group in groups.items()} == {
        'top_k': False,
        'confusion': False,
        'ranking': True,
    }


@pytest.mark.parametrize(
    ('kind', 'name', 'hint'),
    [
        ('multiclass', 'acuracy', "did you mean 'accuracy'"),
        ('multiclass', 'f1', 'known: .*f1_macro, f1_micro'),
        ('multiclass', 'top_20', "'top_10'"),
        ('binary', 'top_5', 'known: accuracy, auc'),
        ('regression', 'accuracy', 'known: mae, mse, r2, rmse'),
        ('language_model', 'bits_per_byte', 'known: '),
    ],
)
def test_an_unknown_metric_is_refused(kind, name, hint):
    with pytest.raises(ConfigError, match=f"no metric '{name}' for a {kind} task.*{hint}"):
        metrics.make(('log_loss' if kind != 'regression' else 'mse', name), kind, num_classes=C)
