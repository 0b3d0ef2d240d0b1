import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from sklearn.neural_network import MLPClassifier

from bigjax import schema
from bigjax.errors import ConfigError
from bigjax.models import mlp
from tests.models import checks

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 30)).astype(np.float32)


def build(outputs=1, inputs=X, dtype=jnp.float32, **fields):
    config = schema.build(mlp.Config, fields, 'config.model')
    return mlp.build(config, jax.ShapeDtypeStruct(inputs.shape, inputs.dtype), outputs, dtype)


def test_the_small_case_is_128_64_1():
    model = build()
    assert checks.count(model) == (30 * 128 + 128) + (128 * 64 + 64) + (64 + 1)
    checks.assert_axes_are_named(model)
    axes = model.axes['params']
    assert axes['hidden_0']['dense']['kernel'] == PartitionSpec('input', 'mlp')
    assert axes['hidden_1']['dense']['kernel'] == PartitionSpec('embed', 'mlp')
    assert axes['read_out']['kernel'] == PartitionSpec('embed', 'output')


@pytest.mark.parametrize('activation', ['relu', 'tanh'])
def test_against_scikit_learn(activation):
    targets = np.arange(6) % 3
    theirs = MLPClassifier((8, 5), activation=activation, max_iter=1, random_state=0)
    theirs.partial_fit(X, targets, classes=range(3))
    layers = [
        {'kernel': jnp.asarray(w, jnp.float32), 'bias': jnp.asarray(b, jnp.float32)}
        for w, b in zip(theirs.coefs_, theirs.intercepts_, strict=True)
    ]
    params = {
        'hidden_0': {'dense': layers[0]},
        'hidden_1': {'dense': layers[1]},
        'read_out': layers[2],
    }
    model = build(3, widths=(8, 5), activation=activation)
    got = jax.nn.softmax(checks.outputs(model, {'params': params}, X))
    np.testing.assert_allclose(got, theirs.predict_proba(X), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    'fields',
    [{'norm': 'batch', 'dropout': 0.2}, {'norm': 'layer', 'activation': 'swiglu'}],
    ids=['batch', 'gated'],
)
def test_gradients_reach_all_parameters(fields):
    model = build(3, widths=(8, 8), **fields)
    checks.assert_axes_are_named(model)
    checks.assert_gradients_reach_all_parameters(model, X)


@pytest.mark.parametrize('norm', ['batch', 'layer'])
def test_norm_is_of_what_a_hidden_layer_puts_out(norm):
    model = build(2, widths=(7,), norm=norm)
    variables = checks.random_variables(model)
    p = checks.to_numpy(variables['params'])
    x = np.maximum(X @ p['hidden_0']['dense']['kernel'] + p['hidden_0']['dense']['bias'], 0)
    axis, epsilon = {'batch': (0, 1e-5), 'layer': (1, 1e-6)}[norm]
    x = (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + epsilon)
    x = x * p['norm_0']['scale'] + p['norm_0']['bias']
    want = x @ p['read_out']['kernel'] + p['read_out']['bias']
    got, _ = model.apply(variables, X, train=True)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_dropout_is_of_training_alone():
    model = build(widths=(64,), dropout=0.5)
    variables = checks.random_variables(model)
    quiet = checks.outputs(model, variables, X)
    np.testing.assert_array_equal(quiet, checks.outputs(build(widths=(64,)), variables, X))
    noisy = [
        model.apply(variables, X, train=True, rngs={'dropout': jax.random.key(k)})[0]
        for k in range(2)
    ]
    assert not np.allclose(noisy[0], noisy[1])
    assert not np.allclose(noisy[0], quiet)
    assert checks.noise_sources(build(widths=(5, 4, 3), dropout=0.5), X) == 3


def test_gradients_survive_sharding():
    model = build(2, widths=(8, 8), activation='swiglu', norm='batch')
    checks.assert_gradients_survive_sharding(model, RNG.normal(size=(8, 30)).astype(np.float32))


def test_images_are_flattened():
    images = np.zeros((2, 4, 5, 3), np.float32)
    assert build(inputs=images).abstract()['params']['hidden_0']['dense']['kernel'].shape[0] == 60


def test_no_hidden_layer_is_a_linear_model():
    model = build(2, widths=())
    variables = checks.random_variables(model)
    p = checks.to_numpy(variables['params']['read_out'])
    got = checks.outputs(model, variables, X)
    np.testing.assert_allclose(got, X @ p['kernel'] + p['bias'], rtol=1e-4, atol=1e-5)
    assert model.axes['params']['read_out']['kernel'] == PartitionSpec('input', 'output')


def test_bfloat16_is_close_and_puts_out_float32():
    variables = checks.random_variables(build(3))
    want = checks.outputs(build(3), variables, X)
    got = checks.outputs(build(3, dtype=jnp.bfloat16), variables, X)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=0.05)
    assert (got != want).any()


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'widths': (0,)}, r'config.model.widths\[0\]: expected a number >= 1, got 0'),
        ({'activation': 'rely'}, "activation: expected one of .*'rely'; did you mean 'relu'"),
        ({'dropout': 1.0}, 'dropout: expected a number .* < 1, got 1.0'),
        ({'width': 3}, "unknown key config.model.width: did you mean 'widths'"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(**fields)


def test_several_arrays_are_refused():
    tree = {'a': jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    with pytest.raises(
        ConfigError, match=r'config.model.name: mlp expects one array a row, .*\(3,\)'
    ):
        mlp.build(mlp.Config(), tree, 1, jnp.float32)
