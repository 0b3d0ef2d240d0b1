import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bigjax.nn.conv import Conv, max_pool, mean_pool
from bigjax.nn.params import logical_axes
from tests.nn import oracles

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ('kernel', 'stride', 'padding'),
    [(3, 1, None), (3, 2, None), (1, 2, None), (4, 4, 0), (7, 2, 3)],
)
def test_conv(kernel, stride, padding):
    x = RNG.normal(size=(2, 8, 12, 3)).astype(np.float32)
    conv = Conv(5, kernel, stride, padding)
    weights = RNG.normal(size=(kernel, kernel, 3, 5)).astype(np.float32)
    bias = RNG.normal(size=5).astype(np.float32)
    got = conv.apply({'params': {'kernel': weights, 'bias': bias}}, x)
    want = oracles.conv(x, weights, stride, padding, bias)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_conv_names_its_axes():
    axes = logical_axes(jax.eval_shape(Conv(5).init, jax.random.key(0), np.zeros((1, 4, 4, 3))))
    assert axes['params'] == {
        'kernel': PartitionSpec('kernel_height', 'kernel_width', 'embed', 'mlp'),
        'bias': PartitionSpec('mlp'),
    }


@pytest.mark.parametrize(('window', 'stride', 'padding'), [(2, 2, 0), (3, 2, 1), (3, 1, 0)])
def test_max_pool_and_its_gradient(window, stride, padding):
    x = RNG.normal(size=(2, 8, 9, 3)).astype(np.float32)

    @jax.jit
    def pool(x, cotangent):
        y, pullback = jax.vjp(lambda x: max_pool(x, window, stride, padding), x)
        return y, *pullback(cotangent)

    want = oracles.max_pool(x, window, stride, padding)
    cotangent = RNG.normal(size=want.shape).astype(np.float32)
    got, gradient = pool(x, cotangent)
    np.testing.assert_array_equal(got, want.astype(np.float32))
    want = oracles.max_pool_gradient(x, cotangent, window, stride, padding)
    np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=1e-6)


def test_equal_values_share_the_gradient_of_max_pool():
    grad = jax.grad(lambda x: max_pool(x, 2, 2).sum())(jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(grad, np.full((1, 4, 4, 1), 0.25))


def test_mean_pool_is_float32():
    x = RNG.normal(size=(2, 5, 6, 3)).astype(jnp.bfloat16)
    got = mean_pool(jnp.asarray(x))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, x.astype(np.float64).mean((1, 2)), rtol=1e-5)
