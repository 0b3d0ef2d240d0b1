"""Losses against float64 closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, logsumexp

from bigjax import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=3, size=(4, 5, 7)).astype(np.float32)
IDS = RNG.integers(7, size=(4, 5))
ONE_HOT = np.eye(7)[IDS]


def cross_entropy(logits, probabilities):
    return -(probabilities * log_softmax(np.float64(logits), axis=-1)).sum(-1)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_softmax_cross_entropy_of_ids_and_of_probabilities(smoothing):
    expected = cross_entropy(LOGITS, (1 - smoothing) * ONE_HOT + smoothing / 7)
    for targets in (IDS, ONE_HOT, ONE_HOT.astype(int)):
        actual = losses.softmax_cross_entropy(
            jnp.asarray(LOGITS), jnp.asarray(targets), label_smoothing=smoothing
        )
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_soft_targets():
    probabilities = RNG.dirichlet(np.ones(7), size=(4, 5)).astype(np.float32)
    actual = losses.softmax_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(probabilities))
    np.testing.assert_allclose(actual, cross_entropy(LOGITS, probabilities), rtol=1e-5)


def test_z_loss_adds_the_squared_log_normalizer():
    expected = cross_entropy(LOGITS, ONE_HOT) + 0.01 * logsumexp(np.float64(LOGITS), axis=-1) ** 2
    for targets in (IDS, ONE_HOT):
        actual = losses.softmax_cross_entropy(
            jnp.asarray(LOGITS), jnp.asarray(targets), z_loss=0.01
        )
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_softmax_cross_entropy_of_huge_logits_is_finite_and_so_is_its_gradient(smoothing):
    logits = jnp.array([[1e4, 0.0, -1e4], [-3e38, 0.0, 1.0], [1e4, 1e4, 1e4]])
    ids = jnp.array([2, 1, 0])

    def total(logits):
        return losses.softmax_cross_entropy(logits, ids, label_smoothing=smoothing).sum()

    gradient = jax.grad(total)(logits)
    smooth = (1 - smoothing) * np.eye(3)[ids] + smoothing / 3
    expected = np.exp(log_softmax(np.float64(logits), axis=-1)) - smooth
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    if not smoothing:  # with it, the second row's loss is truly beyond float32's mean
        values = losses.softmax_cross_entropy(logits, ids)
        np.testing.assert_allclose(values, [2e4, np.log1p(np.e), np.log(3)], rtol=1e-3)


@pytest.mark.parametrize('bad', [-1, 7])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_an_id_outside_the_classes_gives_nan(bad, smoothing):
    values = losses.softmax_cross_entropy(
        jnp.asarray(LOGITS[0]), jnp.asarray(IDS[0]).at[2].set(bad), smoothing
    )
    assert np.isnan(values).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_sigmoid_cross_entropy(smoothing):
    logits = RNG.normal(scale=4, size=(6, 3)).astype(np.float32)
    targets = RNG.integers(2, size=(6, 3))
    smooth = (1 - smoothing) * targets + smoothing / 2
    p = expit(np.float64(logits))
    expected = -(smooth * np.log(p) + (1 - smooth) * np.log1p(-p))
    actual = losses.sigmoid_cross_entropy(jnp.asarray(logits), jnp.asarray(targets), smoothing)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_sigmoid_cross_entropy_of_huge_logits():
    logits, targets = jnp.array([1e5, 1e5, -1e5, -1e5]), jnp.array([0.0, 1.0, 0.0, 1.0])
    np.testing.assert_allclose(losses.sigmoid_cross_entropy(logits, targets), [1e5, 0, 0, 1e5])
    gradient = jax.grad(lambda x: losses.sigmoid_cross_entropy(x, targets).sum())(logits)
    np.testing.assert_allclose(gradient, [1, 0, 0, -1])


def test_errors():
    predictions, targets = jnp.array([0.0, 0.5, 3.0, -3.0]), jnp.array([0.0, 0.0, 1.0, 1.0])
    np.testing.assert_allclose(losses.squared_error(predictions, targets), [0, 0.25, 4, 16])
    np.testing.assert_allclose(losses.absolute_error(predictions, targets), [0, 0.5, 2, 4])
    huber = losses.huber_error(predictions, targets, delta=2.0)
    np.testing.assert_allclose(huber, [0, 0.125, 2, 6])
    slope = jax.grad(lambda x: losses.huber_error(x, targets, delta=2.0).sum())(predictions)
    np.testing.assert_allclose(slope, [0, 0.5, 2, -2])


def test_half_precision_is_computed_in_float32():
    logits, ids = jnp.asarray(LOGITS, jnp.bfloat16), jnp.asarray(IDS)
    exact = cross_entropy(np.float64(logits), ONE_HOT)
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, ids), exact, rtol=1e-5)
    predictions, targets = jnp.array([3.0], jnp.bfloat16), jnp.array([1e-3], jnp.float32)
    for function in (losses.squared_error, losses.absolute_error, losses.huber_error):
        assert function(predictions, targets).dtype == jnp.float32
    np.testing.assert_allclose(losses.absolute_error(predictions, targets), 2.999, rtol=1e-6)


@pytest.mark.parametrize(
    'function', [losses.sigmoid_cross_entropy, losses.squared_error, losses.huber_error]
)
def test_shapes_that_would_broadcast_are_refused(function):
    with pytest.raises(ValueError, match=r'\(8,\).*\(8, 1\)'):
        function(jnp.zeros((8, 1)), jnp.zeros(8))


def test_softmax_cross_entropy_refuses_targets_of_another_shape():
    for targets in (jnp.zeros((8, 1), int), jnp.zeros(3, int), jnp.zeros((8, 2))):
        with pytest.raises(ValueError, match='shape'):
            losses.softmax_cross_entropy(jnp.zeros((8, 3)), targets)


def test_penalties():
    params = {'dense': {'w': jnp.array([[1.0, -2.0]]), 'b': jnp.array([3.0])}, 'scale': -4.0}
    params['scale'] = jnp.asarray(params['scale'], jnp.bfloat16)
    np.testing.assert_allclose(losses.l1_penalty(params), 10)
    np.testing.assert_allclose(losses.l2_penalty(params), 15)
    gradient = jax.grad(losses.l2_penalty)(params)
    np.testing.assert_allclose(gradient['dense']['w'], params['dense']['w'])


def test_penalty_of_nothing_is_zero():
    assert losses.l2_penalty({}) == 0
