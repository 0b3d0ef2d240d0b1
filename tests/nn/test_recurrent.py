import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.nn.params import unbox
from bigjax.nn.recurrent import Recurrent
from tests.nn import oracles

B, T, D, F = 3, 6, 4, 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, D)).astype(np.float32)


def random_params(layer):
    shapes = unbox(jax.eval_shape(layer.init, jax.random.key(0), X))
    return jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize('cell', ['lstm', 'gru'])
@pytest.mark.parametrize('reverse', [False, True])
def test_against_a_loop(cell, reverse):
    layer = Recurrent(cell, F, reverse=reverse)
    variables = random_params(layer)
    steps, last = layer.apply(variables, X)
    order = slice(None, None, -1) if reverse else slice(None)
    want = oracles.recurrent(cell, X[:, order], variables['params'])
    np.testing.assert_allclose(last, want[:, -1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(steps, want[:, order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('cell', ['lstm', 'gru'])
@pytest.mark.parametrize('reverse', [False, True])
def test_padding_changes_nothing(cell, reverse):
    layer = Recurrent(cell, F, reverse=reverse)
    variables = random_params(layer)
    valid = T - 2
    mask = np.broadcast_to(np.arange(T) < valid, (B, T))
    steps, last = layer.apply(variables, X, mask)
    short_steps, short_last = layer.apply(variables, X[:, :valid])
    np.testing.assert_allclose(last, short_last, atol=1e-6)
    np.testing.assert_allclose(steps[:, :valid], short_steps, atol=1e-6)


@pytest.mark.parametrize('cell', ['lstm', 'gru'])
def test_bfloat16_is_close(cell):
    layer = Recurrent(cell, F)
    variables = random_params(layer)
    want, _ = layer.apply(variables, X)
    got, last = layer.clone(dtype=jnp.bfloat16).apply(variables, X)
    assert got.dtype == last.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), want, atol=0.06)


def test_an_lstm_in_bfloat16_remembers_in_float32():
    """A state of 1 in bfloat16 would not feel steps of 1/1000."""
    p = {'kernel': np.zeros((1, 4)), 'input': {'kernel': np.zeros((1, 4)), 'bias': np.zeros(4)}}
    # Input gate 1, forget gate 1, candidate tanh(g) = .001, output gate 1.
    p['input']['bias'] = np.array([30, 30, np.arctanh(0.001), 30], np.float32)
    x = np.zeros((1, 1000, 1), np.float32)
    _, last = Recurrent('lstm', 1, dtype=jnp.bfloat16).apply({'params': p}, x)
    assert float(last[0, 0]) == pytest.approx(np.tanh(1.0), rel=0.01)
