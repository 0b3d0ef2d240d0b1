import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.nn import initializers

FAN_IN, FAN_OUT = 300, 200


@pytest.mark.parametrize(
    ('init', 'variance'),
    [
        (initializers.lecun(), 1 / FAN_IN),
        (initializers.he(), 2 / FAN_IN),
        (initializers.xavier(), 2 / (FAN_IN + FAN_OUT)),
        (initializers.normal(0.3), 0.09),
    ],
    ids=['lecun', 'he', 'xavier', 'normal'],
)
def test_variance(init, variance):
    kernel = init(jax.random.key(0), (FAN_IN, FAN_OUT), jnp.float32)
    assert np.var(kernel) == pytest.approx(variance, rel=0.02)
    assert np.mean(kernel) == pytest.approx(0, abs=4 * np.sqrt(variance / kernel.size))


def test_fan_in_of_a_convolution_counts_its_window():
    kernel = initializers.he()(jax.random.key(0), (5, 5, 20, 40), jnp.float32)
    assert np.var(kernel) == pytest.approx(2 / (5 * 5 * 20), rel=0.02)


def test_orthogonal():
    kernel = np.asarray(initializers.orthogonal()(jax.random.key(0), (8, 32), jnp.float32))
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(8), atol=1e-5)


def test_before_relu_is_he():
    draw = [initializers.before(name)(jax.random.key(0), (99, 99)) for name in ('relu', 'tanh')]
    np.testing.assert_allclose(draw[0], np.sqrt(2) * draw[1], rtol=1e-5)
