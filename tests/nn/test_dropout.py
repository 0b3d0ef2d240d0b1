import jax
import numpy as np
import pytest

from bigjax.nn.dropout import Dropout, StochasticDepth

KEY = jax.random.key(0)


def apply(module, x, train=True, key=KEY):
    return np.asarray(module.apply({}, x, train, rngs={'dropout': key}))


def test_dropout_drops_at_its_rate_and_scales_the_rest():
    y = apply(Dropout(0.3), np.ones((200, 500), np.float32))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7)}
    # 100,000 independent draws: five standard deviations of their mean are .007.
    assert (y == 0).mean() == pytest.approx(0.3, abs=0.007)
    # Independent along both axes: no row and no column far from the rate.
    assert np.abs((y == 0).mean(0) - 0.3).max() < 5 * np.sqrt(0.21 / 200)
    assert np.abs((y == 0).mean(1) - 0.3).max() < 5 * np.sqrt(0.21 / 500)


def test_dropout_draws_anew_with_each_key():
    x = np.ones((20, 20), np.float32)
    first, again, other = (apply(Dropout(0.5), x, key=jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize('layer', [Dropout, StochasticDepth])
def test_identity_in_evaluation_and_at_rate_zero_without_a_stream(layer):
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_array_equal(layer(0.5).apply({}, x, False), x)
    np.testing.assert_array_equal(layer(0.0).apply({}, x, True), x)


def test_stochastic_depth_drops_whole_samples_and_keeps_the_expectation():
    x = np.random.default_rng(0).uniform(1, 2, size=(20_000, 2, 3)).astype(np.float32)
    ratio = apply(StochasticDepth(0.25), x) / x
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-6)
    kept = ratio[:, 0, 0] > 0
    np.testing.assert_allclose(ratio[kept], 1 / 0.75, rtol=1e-6)
    assert kept.mean() == pytest.approx(0.75, abs=5 * np.sqrt(0.25 * 0.75 / len(x)))
