import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bigjax.analysis.sharpness import hessian_vector_product, sharpness, top_eigenpairs
from bigjax.errors import ConfigError


def loss(params, inputs, targets):
    hidden = jnp.tanh(inputs @ params['in'] + params['bias'][None])
    return jnp.mean((hidden @ params['out'] - targets) ** 2)


@pytest.fixture(scope='module')
def problem():
    """Parameters, data, and the eigenvalues of the dense Hessian in float64."""
    rng = np.random.default_rng(0)
    params = {
        'in': rng.normal(size=(5, 7)) / 2,
        'bias': rng.normal(size=7),
        'out': rng.normal(size=(7, 2)),
    }
    data = rng.normal(size=(40, 5)), rng.normal(size=(40, 2))
    with jax.enable_x64(True):
        flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, params))
        dense = np.asarray(jax.hessian(lambda at: loss(unravel(at), *data))(flat))
    return params, data, dense


def as_float32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def test_products_are_those_of_the_dense_hessian(problem):
    params, data, dense = problem
    vector = np.random.default_rng(1).normal(size=len(dense))
    flat, unravel = ravel_pytree(as_float32(params))
    found = hessian_vector_product(
        loss, unravel(flat), unravel(jnp.float32(vector)), *as_float32(data)
    )
    np.testing.assert_allclose(ravel_pytree(found)[0], dense @ vector, rtol=2e-4, atol=2e-5)


def test_top_eigenvalues_in_float64(problem):
    params, data, dense = problem
    exact = np.linalg.eigvalsh(dense)[::-1]
    with jax.enable_x64(True):
        params, data = jax.tree.map(jnp.asarray, (params, data))
        found = top_eigenpairs(loss, params, *data, count=5, tolerance=1e-10)
        flat = np.asarray(jax.vmap(lambda tree: ravel_pytree(tree)[0])(found.vectors))
    np.testing.assert_allclose(found.values, exact[:5], rtol=1e-9)
    np.testing.assert_allclose(dense @ flat.T, flat.T * found.values, atol=1e-6)
    np.testing.assert_allclose(flat @ flat.T, np.eye(5), atol=1e-8)


def test_float32_is_within_its_own_bound(problem):
    params, data, dense = problem
    exact = np.linalg.eigvalsh(dense)[::-1]
    found = top_eigenpairs(loss, as_float32(params), *as_float32(data), count=3, tolerance=1e-2)
    assert (np.abs(found.values - exact[:3]) <= found.errors + 1e-5).all()
    assert sharpness(loss, as_float32(params), *as_float32(data)) == pytest.approx(exact[0], 1e-3)


def test_an_eigenvector_is_a_start_that_takes_one_step(problem):
    params, data = as_float32(problem[0]), as_float32(problem[1])
    found = top_eigenpairs(loss, params, *data)
    start = jax.tree.map(lambda leaf: leaf[0], found.vectors)
    again = top_eigenpairs(loss, params, *data, start=start, max_steps=2, tolerance=5e-3)
    assert again.values[0] == pytest.approx(found.values[0], rel=1e-3)


def quadratic(params, curvature):
    return jnp.sum(curvature * params**2) / 2


def test_the_largest_is_that_of_most_positive_curvature():
    curvature = jnp.array([-100.0, 3.0, 2.0, -1.0])
    found = top_eigenpairs(quadratic, jnp.zeros(4), curvature, count=4)
    np.testing.assert_allclose(found.values, [3, 2, -1, -100], rtol=1e-5)


def test_many_steps_stay_orthogonal():
    """Without reorthogonalisation copies of the largest eigenvalues would turn up here."""
    curvature = jnp.concatenate([jnp.array([1000.0, 900.0]), jnp.linspace(1, 2, 298)])
    found = top_eigenpairs(
        quadratic, jnp.zeros(300), curvature, count=3, tolerance=1e-5, max_steps=120
    )
    np.testing.assert_allclose(found.values, [1000, 900, 2], atol=0.02)


def test_what_cannot_be_found_is_refused():
    params = jnp.zeros(4)
    with pytest.raises(ConfigError, match='expected 1 to 4 eigenvalues, got 5'):
        top_eigenpairs(quadratic, params, jnp.ones(4), count=5)
    with pytest.raises(ConfigError, match='at most 1, the different eigenvalues'):
        top_eigenpairs(quadratic, params, jnp.ones(4), count=2)
    with pytest.raises(ConfigError, match='not finite'):
        top_eigenpairs(quadratic, params, jnp.full(4, jnp.nan))
    many = jnp.linspace(0, 1, 500)
    with pytest.raises(ConfigError, match='raise max_steps or tolerance'):
        top_eigenpairs(quadratic, jnp.zeros(500), many, max_steps=3, tolerance=1e-6)
