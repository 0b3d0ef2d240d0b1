import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import schema
from bigjax.errors import ConfigError
from bigjax.models import rnn
from tests.models import checks
from tests.nn import oracles

B, T, C, V = 3, 7, 4, 11
RNG = np.random.default_rng(0)
FLOATS = RNG.normal(size=(B, T, C)).astype(np.float32)
IDS = RNG.integers(1, V, size=(B, T), dtype=np.int32)


def build(inputs=FLOATS, outputs=2, dtype=jnp.float32, **fields):
    config = schema.build(rnn.Config, {'width': 5} | fields, 'config.model')
    return rnn.build(config, jax.ShapeDtypeStruct(inputs.shape, inputs.dtype), outputs, dtype)


def read_out(params, x):
    return x @ params['read_out']['kernel'] + params['read_out']['bias']


@pytest.mark.parametrize('cell', ['lstm', 'gru'])
def test_two_layers_against_a_loop(cell):
    model = build(cell=cell, layers=2)
    variables = checks.random_variables(model)
    p = checks.to_numpy(variables['params'])
    h = oracles.recurrent(cell, FLOATS, p['forward_0'])
    h = oracles.recurrent(cell, h, p['forward_1'])
    got = checks.outputs(model, variables, FLOATS)
    np.testing.assert_allclose(got, read_out(p, h[:, -1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('head', ['last', 'mean'])
def test_bidirectional_over_padded_token_ids(head):
    lengths = [7, 4, 1]
    ids = np.where(np.arange(T) < np.array(lengths)[:, None], IDS, 0)
    fields = {'vocab_size': V, 'padding_id': 0, 'bidirectional': True, 'layers': 2, 'head': head}
    model = build(ids, **fields)
    variables = checks.random_variables(model)
    p = checks.to_numpy(variables['params'])
    want = []
    for row, length in zip(ids, lengths, strict=True):
        x = p['embed']['embedding'][row[None, :length]]
        for layer in range(2):
            forward = oracles.recurrent('lstm', x, p[f'forward_{layer}'])
            backward = oracles.recurrent('lstm', x[:, ::-1], p[f'backward_{layer}'])
            x = np.concatenate([forward, backward[:, ::-1]], -1)
        last = np.concatenate([forward[:, -1], backward[:, -1]], -1)
        want.append(read_out(p, last if head == 'last' else x.mean(1))[0])
    got = checks.outputs(model, variables, ids)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_language_model_is_causal():
    model = build(IDS, V, vocab_size=V, head='all', cell='gru')
    variables = checks.random_variables(model)
    logits = checks.outputs(model, variables, IDS)
    assert logits.shape == (B, T, V)
    changed = IDS.copy()
    changed[:, 4] = IDS[:, 4] % (V - 1) + 1
    differs = (checks.outputs(model, variables, changed) != logits).any((0, 2))
    assert not differs[:4].any()
    assert differs[4:].all()


@pytest.mark.parametrize(
    ('inputs', 'fields'),
    [
        (FLOATS, {'cell': 'lstm', 'bidirectional': True, 'layers': 2, 'dropout': 0.1}),
        (IDS, {'cell': 'gru', 'vocab_size': V, 'head': 'mean', 'dropout': 0.1}),
    ],
    ids=['floats', 'ids'],
)
def test_gradients_reach_all_parameters(inputs, fields):
    model = build(inputs, **fields)
    checks.assert_axes_are_named(model)
    checks.assert_gradients_reach_all_parameters(model, inputs)


@pytest.mark.parametrize('inputs', [FLOATS, IDS], ids=['floats', 'ids'])
def test_gradients_survive_sharding(inputs):
    fields = {'vocab_size': V + 1, 'padding_id': 0} if inputs is IDS else {}
    model = build(inputs, width=8, bidirectional=True, **fields)
    inputs = np.concatenate([inputs, inputs[:1, ::-1]])  # four rows, for four shards of the batch
    checks.assert_gradients_survive_sharding(model, inputs)


def test_parameter_counts():
    lstm = 4 * (C * 5 + 5 * 5 + 5)
    assert checks.count(build()) == lstm + 5 * 2 + 2
    gru = 3 * (5 * 5 + 5 * 5 + 5)
    assert checks.count(build(IDS, cell='gru', vocab_size=V)) == V * 5 + gru + 5 * 2 + 2


@pytest.mark.parametrize('inputs', [FLOATS, IDS], ids=['floats', 'ids'])
def test_dropout_is_of_training_alone(inputs):
    fields = {'vocab_size': V if inputs is IDS else None}
    model = build(inputs, width=32, dropout=0.5, **fields)
    variables = checks.random_variables(model)
    quiet = checks.outputs(model, variables, inputs)
    same = checks.outputs(build(inputs, width=32, **fields), variables, inputs)
    np.testing.assert_array_equal(quiet, same)
    rngs = {'dropout': jax.random.key(0)}
    assert not np.allclose(model.apply(variables, inputs, train=True, rngs=rngs)[0], quiet)
    sources = checks.noise_sources(build(inputs, layers=3, dropout=0.5, **fields), inputs)
    assert sources == (4 if inputs is IDS else 3)  # embeddings, between layers, and the last's


def test_bfloat16_is_close_and_puts_out_float32():
    variables = checks.random_variables(build())
    want = checks.outputs(build(), variables, FLOATS)
    got = checks.outputs(build(dtype=jnp.bfloat16), variables, FLOATS)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=0.02)
    assert (got != want).any()


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'inputs': np.zeros((2, 30), np.float32)}, r'rnn expects sequences \[T, C\].*\(30,\)'),
        ({'inputs': IDS}, r'rnn expects .* token ids \[T\] with a vocab_size, got .* \(7,\)'),
        ({'vocab_size': 9}, r'rnn expects token ids \[T\], as config.model.vocab_size is set'),
        ({'inputs': FLOATS[..., 0], 'vocab_size': 9}, 'vocab_size: .* got 9 for float32'),
        ({'head': 'all', 'bidirectional': True}, 'it would see what it predicts'),
        ({'vocab_size': 9, 'padding_id': 9}, 'padding_id=9 must be below vocab_size'),
        ({'cell': 'rnn'}, 'config.model.cell: expected one of lstm, gru'),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(**fields)
