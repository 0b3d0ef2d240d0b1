import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import schema
from bigjax.errors import ConfigError
from bigjax.models import cnn
from tests.models import checks
from tests.nn import oracles

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 8, 8, 1)).astype(np.float32)


def build(row=X.shape[1:], outputs=10, dtype=jnp.float32, **fields):
    config = schema.build(cnn.Config, fields, 'config.model')
    return cnn.build(config, jax.ShapeDtypeStruct((2, *row), jnp.float32), outputs, dtype)


def test_the_small_case_for_28x28_digits():
    model = build((28, 28, 1))
    convolutions = (9 * 32 + 32) + (9 * 32 * 64 + 64) + (9 * 64 * 64 + 64)
    assert checks.count(model) == convolutions + (7 * 7 * 64 * 64 + 64) + (64 * 10 + 10)
    checks.assert_axes_are_named(model)
    axes = model.axes['params']
    assert axes['conv_0']['kernel'][2:] == ('input', 'mlp')
    assert axes['conv_1']['kernel'][2:] == ('embed', 'mlp')


def test_against_numpy():
    model = build(channels=(3, 4, 5), dense=(6,), outputs=2)
    variables = checks.random_variables(model)
    p = checks.to_numpy(variables['params'])

    def conv(name, x):
        return np.maximum(oracles.conv(x, p[name]['kernel'], bias=p[name]['bias']), 0)

    x = oracles.max_pool(conv('conv_0', X), 2, 2)
    x = oracles.max_pool(conv('conv_1', x), 2, 2)
    x = conv('conv_2', x).reshape(2, -1)
    dense = p['dense_0']['dense']
    x = np.maximum(x @ dense['kernel'] + dense['bias'], 0)
    want = x @ p['read_out']['kernel'] + p['read_out']['bias']
    got = checks.outputs(model, variables, X)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_gradients_reach_all_parameters():
    fields = {'channels': (3, 4), 'dense': (6, 5), 'norm': 'batch', 'dropout': 0.2}
    model = build(**fields)
    checks.assert_axes_are_named(model)
    assert 'bias' not in model.abstract()['params']['conv_0']  # the norm's own takes its place
    checks.assert_gradients_reach_all_parameters(model, X)


def test_gradients_survive_sharding():
    """Two pixels a side are left for the last convolution: fewer than its kernel."""
    model = build(channels=(8, 8, 8), dense=(8,))
    checks.assert_gradients_survive_sharding(
        model, RNG.normal(size=(8, 8, 8, 1)).astype(np.float32)
    )


def test_dropout_is_of_what_dense_layers_read():
    assert checks.noise_sources(build(dense=(6, 5), dropout=0.5), X) == 3
    assert checks.noise_sources(build(dense=(6, 5)), X) == 0


def test_batch_norm_learns_its_averages_in_training_alone():
    model = build(channels=(3,), pools=1, dense=(), norm='batch')
    variables = model.init(jax.random.key(0))
    _, changed = model.apply(variables, X, train=True)
    mean = oracles.conv(X, np.asarray(variables['params']['conv_0']['kernel'])).mean((0, 1, 2))
    np.testing.assert_allclose(changed['batch_stats']['norm_0']['mean'], 0.1 * mean, atol=1e-6)
    _, changed = model.apply(variables, X, train=False)
    assert changed == {}


def test_bfloat16_is_close_and_puts_out_float32():
    fields = {'channels': (3, 4), 'dense': (6,), 'norm': 'batch'}
    variables = checks.random_variables(build(**fields))
    want = checks.outputs(build(**fields), variables, X)
    got = checks.outputs(build(dtype=jnp.bfloat16, **fields), variables, X)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=0.05)
    assert (got != want).any()


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'row': (30,)}, r'config.model.name: cnn expects images \[H, W, C\], .* shape \(30,\)'),
        ({'row': (28, 28)}, r'cnn expects images \[H, W, C\], got rows of shape \(28, 28\)'),
        ({'row': (3, 9, 1)}, r'pools: 2 poolings need images .* 4 pixels a side, got \(3, 9\)'),
        ({'channels': (8,)}, r'config.model: pools=2 is more than the 1 convolutions'),
        ({'kernel': 4}, 'config.model: kernel must be odd'),
        ({'activation': 'swiglu'}, 'config.model.activation: expected one of sigmoid, tanh, relu'),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(**fields)
