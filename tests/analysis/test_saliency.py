import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.analysis import saliency

RNG = np.random.default_rng(0)
X, BASELINE = jnp.float32(RNG.normal(size=(4, 3))), jnp.float32(RNG.normal(size=(4, 3)))
W = jnp.float32(RNG.normal(size=(12, 8)))


def network(x):
    return jnp.tanh(x.ravel() @ W).sum() ** 2


def cubic(x):
    return jnp.sum(x**3)


def test_integrated_gradients_are_complete():
    """Sundararajan et al. 2017, proposition 1."""
    found = saliency.integrated_gradients(network, X, BASELINE)
    assert found.shape == X.shape
    assert float(found.sum()) == pytest.approx(float(network(X) - network(BASELINE)), rel=1e-4)
    gap = saliency.completeness_gap(network, X, BASELINE, found)
    assert gap == pytest.approx(0, abs=1e-3)
    coarse = saliency.integrated_gradients(network, X, BASELINE, points=1)
    assert abs(saliency.completeness_gap(network, X, BASELINE, coarse)) > 0.1


def test_integrated_gradients_of_a_polynomial_in_closed_form():
    found = saliency.integrated_gradients(cubic, X, BASELINE, points=2)
    np.testing.assert_allclose(found, X**3 - BASELINE**3, rtol=1e-4, atol=1e-5)


def test_an_input_that_is_not_read_gets_nothing():
    """Sensitivity (b): ibid., section 2."""

    def blind(x):
        return network(x.at[1].set(0))

    for found in (
        saliency.gradient(blind, X),
        saliency.smooth_gradient(blind, X, jax.random.key(0)),
        saliency.integrated_gradients(blind, X, BASELINE),
    ):
        assert (found[1] == 0).all()
        assert (found[0] != 0).all()


def test_the_gradient_against_finite_differences():
    found, h = saliency.gradient(cubic, X), 1e-2
    step = jnp.zeros_like(X).at[2, 1].set(h)
    slope = (cubic(X + step) - cubic(X - step)) / (2 * h)
    assert float(found[2, 1]) == pytest.approx(float(slope), rel=1e-2)


def test_smooth_gradient_is_the_gradient_of_the_smoothed_score():
    """Of sum x^3 under noise of variance v: 3 (x^2 + v)."""
    noise = 0.2
    found = saliency.smooth_gradient(cubic, X, jax.random.key(0), noise=noise, samples=20_000)
    variance = (noise * float(X.max() - X.min())) ** 2
    np.testing.assert_allclose(found, 3 * (X**2 + variance), atol=0.1)
