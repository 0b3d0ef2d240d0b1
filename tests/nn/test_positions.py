import jax
import jax.numpy as jnp
import numpy as np

from bigjax.nn.positions import Frequencies, Scaling, rotate, sinusoidal

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 3, 8)).astype(np.float32)
POSITIONS = RNG.integers(0, 1000, size=(2, 5))


def test_rotation_against_complex_numbers():
    """A channel and its partner are the parts of one number, turned by position / base^(2c/C)."""
    frequencies = 500.0 ** (-np.arange(4) / 4)
    turned = (X[..., :4] + 1j * X[..., 4:].astype(np.float64)) * np.exp(
        1j * POSITIONS[:, :, None, None] * frequencies
    )
    want = np.concatenate([turned.real, turned.imag], -1)
    got = rotate(jnp.asarray(X), jnp.asarray(POSITIONS), Frequencies(500.0))
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_rotation_keeps_norms_and_dtype():
    got = rotate(jnp.asarray(X), jnp.asarray(POSITIONS))
    np.testing.assert_allclose(np.square(got).sum(-1), np.square(X).sum(-1), rtol=1e-5)
    assert rotate(jnp.asarray(X, jnp.bfloat16), jnp.asarray(POSITIONS)).dtype == jnp.bfloat16


def test_products_of_rotations_depend_on_the_distance_alone():
    query, key = jnp.asarray(X[:1]), jnp.asarray(X[1:])

    def products(start):
        at = start + jnp.arange(5)
        return jnp.einsum('bthc,bshc->bhts', rotate(query, at), rotate(key, at))

    np.testing.assert_allclose(products(0), products(37), atol=1e-4)
    assert not np.allclose(products(0), jnp.einsum('bthc,bshc->bhts', query, key), atol=0.1)


def test_one_row_of_positions_serves_every_row():
    at = jnp.arange(5)
    both = jnp.stack([at, at])
    np.testing.assert_array_equal(rotate(jnp.asarray(X), at), rotate(jnp.asarray(X), both))


def test_sinusoids_against_the_paper():
    positions = np.array([[0, 1, 7], [30, 500, 2]])
    want = np.empty((2, 3, 6))
    for i in range(3):
        angle = positions / 10_000 ** (2 * i / 6)
        want[..., i], want[..., 3 + i] = np.sin(angle), np.cos(angle)
    got = jax.jit(sinusoidal, static_argnums=1)(jnp.asarray(positions), 6)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_scaled_frequencies_against_the_formulas():
    base, channels, factor = 500.0, 16, 8.0
    plain = base ** -(np.arange(0, channels, 2) / channels)
    linear = Frequencies(base, Scaling('linear', factor)).of(channels)
    np.testing.assert_allclose(linear, plain / factor, rtol=1e-6)
    scaling = Scaling('llama3', factor, low=1.0, high=4.0, original_length=32)
    got = Frequencies(base, scaling).of(channels)
    for ours, frequency in zip(got, plain, strict=True):
        wavelength = 2 * np.pi / frequency
        if wavelength < 32 / 4:
            want = frequency
        elif wavelength > 32:
            want = frequency / factor
        else:
            share = (32 / wavelength - 1) / (4 - 1)
            want = (1 - share) * frequency / factor + share * frequency
        np.testing.assert_allclose(ours, want, rtol=1e-5)
    assert len({bool(x) for x in got == plain}) == 2
