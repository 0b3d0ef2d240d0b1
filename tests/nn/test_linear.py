import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bigjax.nn.linear import Dense, Embed, Hidden, add_bias
from bigjax.nn.params import logical_axes, unbox
from tests.nn.oracles import sigmoid

KEY = jax.random.key(0)


def random_variables(module, *inputs):
    """Its variables with random values everywhere, biases too, and their axes."""
    boxed = jax.eval_shape(module.init, KEY, *inputs)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), unbox(boxed))
    return jax.tree.map(np.float32, variables), logical_axes(boxed)


@pytest.mark.parametrize('use_bias', [True, False])
def test_dense_is_x_w_plus_b(use_bias):
    x = np.random.default_rng(1).normal(size=(2, 3, 5)).astype(np.float32)
    dense = Dense(4, ('embed', 'mlp'), use_bias=use_bias)
    variables, axes = random_variables(dense, x)
    p = variables['params']
    want = x.astype(np.float64) @ p['kernel'] + p.get('bias', 0.0)
    np.testing.assert_allclose(dense.apply(variables, x), want, rtol=1e-5, atol=1e-5)
    bias = {'bias': PartitionSpec('mlp')} if use_bias else {}
    assert axes['params'] == {'kernel': PartitionSpec('embed', 'mlp'), **bias}


def test_dense_computes_in_its_dtype_from_float32_parameters():
    x = np.random.default_rng(1).normal(size=(8, 32)).astype(np.float32)
    dense = Dense(16, ('embed', 'mlp'), dtype=jnp.bfloat16)
    variables = jax.tree.map(jnp.asarray, random_variables(dense, x)[0])
    got = dense.apply(variables, x)
    assert got.dtype == jnp.bfloat16
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(unbox(dense.init(KEY, x))))
    want = dense.clone(dtype=jnp.float32).apply(variables, x)
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.2)
    assert not np.array_equal(got.astype(jnp.float32), want)


def test_hidden_pointwise_and_gated():
    x = np.random.default_rng(1).normal(size=(3, 5))
    variables, axes = random_variables(Hidden(4, 'swiglu'), x)
    p = variables['params']
    linear = {name: x @ p[name]['kernel'] + p[name]['bias'] for name in p}
    want = linear['gate'] * sigmoid(linear['gate']) * linear['dense']
    got = Hidden(4, 'swiglu').apply(variables, x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert axes['params']['gate'] == axes['params']['dense']
    got = Hidden(4, 'tanh').apply({'params': {'dense': p['dense']}}, x)
    np.testing.assert_allclose(got, np.tanh(linear['dense']), rtol=1e-4, atol=1e-5)


def test_embed_looks_up_rows_and_attends_to_them():
    ids = np.array([[0, 6, 2], [1, 1, 5]])
    embed = Embed(7, 4)
    variables, axes = random_variables(embed, ids)
    table = variables['params']['embedding']
    assert table.shape == (7, 4)
    assert axes['params']['embedding'] == PartitionSpec('vocab', 'embed')
    np.testing.assert_array_equal(embed.apply(variables, ids), table[ids])
    x = np.random.default_rng(1).normal(size=(2, 3, 4))
    logits = embed.apply(variables, x, method='attend')
    np.testing.assert_allclose(logits, x @ table.T, rtol=1e-4, atol=1e-5)


def test_embed_of_an_unknown_id_is_nan():
    variables, _ = random_variables(Embed(7, 4), np.array([0]))
    got = Embed(7, 4).apply(variables, np.array([6, 7]))
    assert np.isfinite(got[0]).all()
    assert np.isnan(got[1]).all()


def test_the_gradient_of_a_bias_is_summed_in_float32():
    """A sum of 4096 numbers in bfloat16 is a percent off."""
    slope = jnp.asarray(np.random.default_rng(0).normal(size=(4096, 3)) + 0.1, jnp.bfloat16)

    def loss(bias):
        y = add_bias(jnp.zeros(slope.shape, jnp.bfloat16), bias)
        return jnp.sum(y.astype(jnp.float32) * slope.astype(jnp.float32))

    got = jax.jit(jax.grad(loss))(jnp.zeros(3))
    np.testing.assert_allclose(got, np.asarray(slope, np.float64).sum(0), rtol=1e-5)
