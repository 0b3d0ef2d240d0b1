import numpy as np

from bigjax.nn.positions import rotate, sinusoidal

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 3, 8)).astype(np.float32)


def test_rotation_is_a_complex_product():
    pairs = X[..., :4].astype(np.float64) + 1j * X[..., 4:]
    angles = np.arange(5)[:, None, None] * 100.0 ** -(np.arange(4) / 4)
    turned = pairs * np.exp(1j * angles)
    expected = np.concatenate([turned.real, turned.imag], -1)
    np.testing.assert_allclose(rotate(X, np.arange(5), base=100.0), expected, atol=1e-5)


def test_products_depend_on_the_difference_of_positions():
    query, key = X[:, :1], X[:, 1:2]

    def product(at_query, at_key):
        turned = rotate(query, np.array([at_query])) * rotate(key, np.array([at_key]))
        return np.asarray(turned.sum(-1))

    np.testing.assert_allclose(product(3, 1), product(10, 8), atol=1e-5)
    assert abs(product(3, 1) - product(3, 2)).max() > 1e-2


def test_rotation_keeps_the_norm():
    turned = np.asarray(rotate(X, np.arange(5)))
    np.testing.assert_allclose(
        np.linalg.norm(turned, axis=-1), np.linalg.norm(X, axis=-1), rtol=1e-5
    )


def test_sinusoids():
    found = np.asarray(sinusoidal(np.arange(7), 6))
    for position in range(7):
        for channel in range(3):
            angle = position / 10_000 ** (2 * channel / 6)
            np.testing.assert_allclose(found[position, channel], np.sin(angle), atol=1e-6)
            np.testing.assert_allclose(found[position, 3 + channel], np.cos(angle), atol=1e-6)
