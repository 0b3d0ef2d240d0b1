import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from sklearn.metrics import log_loss

from bigjax import metrics
from bigjax.data.core import DataSpec
from bigjax.errors import ConfigError
from bigjax.tasks import classification
from bigjax.tasks.classification import Config

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(7, 3)).astype(np.float32)
IDS = RNG.integers(3, size=7).astype(np.int32)


def spec(classes, shape=(), dtype=jnp.int32):
    return DataSpec(None, jax.ShapeDtypeStruct(shape, dtype), num_classes=classes)


def losses(task, outputs, targets):
    batch = {'inputs': outputs, 'targets': targets, 'weights': np.ones(len(targets), np.float32)}
    return task.loss(lambda inputs: jnp.asarray(inputs), batch)


def mean(found):
    return float((found.values * found.weights).sum() / found.weights.sum())


def test_multiclass_is_the_log_loss():
    task = classification.build(Config(), spec(3))
    assert (task.kind, task.outputs) == ('multiclass', 3)
    assert mean(losses(task, LOGITS, IDS)) == pytest.approx(
        log_loss(IDS, softmax(LOGITS.astype(float), -1)), rel=1e-5
    )
    np.testing.assert_allclose(task.predict(LOGITS), softmax(LOGITS, -1), rtol=1e-5)


def test_one_hot_targets_mean_the_same():
    task = classification.build(Config(), spec(3, (3,), jnp.float32))
    found = losses(task, LOGITS, np.eye(3, dtype=np.float32)[IDS])
    assert mean(found) == pytest.approx(mean(losses(task, LOGITS, IDS)), rel=1e-6)


def test_label_smoothing():
    task = classification.build(Config(label_smoothing=0.3), spec(3))
    smoothed = 0.7 * np.eye(3)[IDS] + 0.1
    expected = -(smoothed * log_softmax(LOGITS.astype(float), -1)).sum(-1)
    np.testing.assert_allclose(losses(task, LOGITS, IDS).values, expected, rtol=1e-5)


def test_class_weights_weigh_the_loss_and_not_the_metrics():
    weights = (1.0, 2.0, 5.0)
    task = classification.build(Config(class_weights=weights), spec(3))
    found = losses(task, LOGITS, IDS)
    by_row = np.array(weights)[IDS]
    expected = log_loss(IDS, softmax(LOGITS.astype(float), -1), sample_weight=by_row)
    assert mean(found) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(found.weights, by_row)


@pytest.mark.parametrize('mixed', [False, True])
def test_binary_has_one_logit(mixed):
    task = classification.build(Config(), spec(2))
    assert (task.kind, task.outputs) == ('binary', 1)
    logits, targets = LOGITS[:, :1], (IDS > 0).astype(np.int32)
    chances = expit(logits[:, 0].astype(float))
    given = np.eye(2, dtype=np.float32)[targets] if mixed else targets
    assert mean(losses(task, logits, given)) == pytest.approx(log_loss(targets, chances), rel=1e-5)
    np.testing.assert_allclose(task.predict(logits)[:, 1], chances, rtol=1e-5)


def test_multilabel_is_the_mean_over_labels():
    task = classification.build(Config(kind='multilabel'), spec(3, (3,), jnp.float32))
    targets = (RNG.random((7, 3)) > 0.5).astype(np.float32)
    chances = expit(LOGITS.astype(float))
    expected = np.mean([log_loss(targets[:, i], chances[:, i], labels=[0, 1]) for i in range(3)])
    assert mean(losses(task, LOGITS, targets)) == pytest.approx(expected, rel=1e-5)
    assert task.train_metrics == ('label_accuracy',)


@pytest.mark.parametrize(
    ('config', 'given', 'message'),
    [
        (Config(), spec(None, dtype=jnp.float32), 'use task regression'),
        (Config(kind='binary'), spec(3), 'binary expects 2 classes, this data has 3'),
        (Config(kind='multilabel'), spec(3), 'a 0 or 1 for each of 3 labels'),
        (Config(class_weights=(1.0, 2.0)), spec(3), r'expected 3 \(one a class\), got 2'),
    ],
)
def test_what_does_not_fit_is_refused(config, given, message):
    with pytest.raises(ConfigError, match=message):
        classification.build(config, given)


@pytest.mark.parametrize('kind', classification.DEFAULT_METRICS)
def test_default_metrics_exist_and_training_ones_are_sums(kind):
    shape = (3,) if kind == 'multilabel' else ()
    classes = 2 if kind == 'binary' else 3
    task = classification.build(Config(kind=kind), spec(classes, shape))
    assert task.metrics(task.default_metrics)
    assert not any(group.gather for group in task.metrics(task.train_metrics).values())
    assert metrics.KINDS[task.kind]
