"""Every implementation that runs here, against softmax written out in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.errors import ConfigError
from bigjax.nn import partials
from bigjax.nn.attend import Dropout, attend
from bigjax.nn.attention import Attention, Cache
from bigjax.nn.positions import Frequencies
from tests.nn import oracles

B, T, H, K, C = 2, 10, 4, 2, 6
RNG = np.random.default_rng(0)
QUERY = RNG.normal(size=(B, T, H, C)).astype(np.float32)
KEY, VALUE = RNG.normal(size=(2, B, T, K, C)).astype(np.float32)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 0, 0], [5, 5, 5, 5, 5, 5, 4, 4, 4, 4]])
CASES = {
    'all': {},
    'causal': {'causal': True},
    'window': {'window': 3},
    'causal_window': {'causal': True, 'window': 3},
    'stride': {'stride': 3},
    'causal_stride': {'causal': True, 'stride': 4},
    'window_of_one': {'window': 1},
    'window_of_two': {'window': 2},
    'segments': {'segments': SEGMENTS},
    'everything': {'causal': True, 'window': 4, 'segments': SEGMENTS, 'logit_soft_cap': 0.7},
}
IMPLEMENTATIONS = ('dense', 'chunked')


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """Of 4, so that 10 positions are three blocks, the last one half full."""
    monkeypatch.setattr(partials, 'BLOCK', 4)


def attend_jitted(implementation, query, key, value, **options):
    arrays = {name: options.pop(name) for name in list(options) if name.endswith('segments')}
    compute = jax.jit(partial(attend, implementation=implementation, **options))
    return compute(*map(jnp.asarray, (query, key, value)), **arrays)


def value_gradients(implementation, weights, **options):
    def loss(query, key, value):
        return (attend(query, key, value, implementation=implementation, **options) * weights).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(QUERY, KEY, VALUE)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('case', CASES)
def test_against_a_reference(case, implementation):
    got = attend_jitted(implementation, QUERY, KEY, VALUE, **CASES[case])
    assert got.dtype == jnp.float32
    want = oracles.attention(QUERY, KEY, VALUE, **CASES[case])
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize('case', ['all', 'causal', 'everything'])
def test_chunked_gradients_are_those_of_dense(case):
    weights = RNG.normal(size=QUERY.shape).astype(np.float32)
    want = value_gradients('dense', weights, **CASES[case])
    got = value_gradients('chunked', weights, **CASES[case])
    for ours, theirs in zip(got, want, strict=True):
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, atol=5e-6)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_queries_that_see_no_key_get_zeros(implementation):
    key, value, key_segments = KEY[:, :7], VALUE[:, :7], np.tile([2, 5, 5, 2, 3, 3, 4], (B, 1))
    options = {'segments': SEGMENTS, 'key_segments': key_segments}
    got = attend_jitted(implementation, QUERY, key, value, **options)
    np.testing.assert_allclose(got, oracles.attention(QUERY, key, value, **options), atol=2e-6)
    blind = ~(SEGMENTS[:, :, None] == key_segments[:, None]).any(-1)
    assert blind.any()
    assert not np.asarray(got)[blind].any()

    def loss(query):
        return attend(query, key, value, implementation=implementation, **options).sum()

    gradient = np.asarray(jax.grad(loss)(QUERY))
    assert np.isfinite(gradient).all()
    assert not gradient[blind].any()


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('case', CASES)
def test_what_can_influence_what(case, implementation):
    """The gradient of output t by value s is zero just where t may not see s."""
    options = dict(CASES[case])
    options.pop('logit_soft_cap', None)

    def first_outputs(value):
        return attend(QUERY, KEY, value, implementation=implementation, **options)[..., 0].sum(2)

    tangents = jax.jit(jax.jacobian(first_outputs))(VALUE)  # [B, T, B, S, K, C]
    influence = np.abs(tangents).max((4, 5))
    seen = oracles.visible(B, T, T, **options)
    for row in range(B):
        np.testing.assert_array_equal(influence[row, :, row] > 0, seen[row])
        assert not influence[row, :, 1 - row].any()


def test_blocks_out_of_reach_are_skipped():
    """NaNs there would spoil the result if they were read."""
    query, key, value = QUERY[:, :8], KEY[:, :8], VALUE[:, :8].copy()
    value[:, 4:] = np.nan
    got = attend_jitted('chunked', query, key, value, causal=True)
    assert np.isfinite(got[:, :4]).all()
    value = VALUE[:, :8].copy()
    value[:, :4] = np.nan
    got = attend_jitted('chunked', query, key, value, window=1)
    assert np.isfinite(got[:, 4:]).all()


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_dropout_keeps_the_mean_and_is_the_same_again(implementation):
    def run(query, value, seed):
        dropout = Dropout(0.4, jax.random.key(seed))
        options = {'causal': True, 'dropout': dropout, 'implementation': implementation}
        return attend(query, KEY, value, **options)

    draws = np.asarray(jax.jit(jax.vmap(partial(run, QUERY, VALUE)))(np.arange(3000)))
    deviation = draws.std(0)
    assert deviation[:, 3:].min() > 0.05
    want = oracles.attention(QUERY, KEY, VALUE, causal=True)
    assert (np.abs(draws.mean(0) - want) < 6 * deviation / np.sqrt(3000) + 1e-5).all()
    # the backward pass draws the same noise: outputs are linear in the values
    gradient = jax.grad(lambda value: run(QUERY, value, 5).sum())(VALUE)
    np.testing.assert_allclose((gradient * VALUE).sum(), run(QUERY, VALUE, 5).sum(), rtol=1e-4)


def test_large_logits_do_not_overflow():
    query, key = 200 * QUERY, 200 * KEY
    for implementation in IMPLEMENTATIONS:
        got = attend_jitted(implementation, query, key, VALUE, causal=True)
        want = oracles.attention(query, key, VALUE, causal=True)
        np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_bfloat16_is_close(implementation):
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in (QUERY, KEY, VALUE)]
    got = attend_jitted(implementation, *inputs, causal=True)
    assert got.dtype == jnp.bfloat16
    want = oracles.attention(*(np.asarray(x, np.float64) for x in inputs), causal=True)
    np.testing.assert_allclose(np.asarray(got, np.float32), want, atol=0.03)


def test_long_sequences_never_hold_all_logits():
    def largest(length):
        x = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
        program = jax.jit(partial(attend, causal=True)).lower(x, x, x).as_text()
        return f'{length}x{length}' in program

    assert largest(512)
    assert not largest(1024)


def test_cudnn_is_refused_where_it_cannot_run():
    with pytest.raises(ConfigError, match=r"'cudnn' expects a GPU.*leave it out"):
        attend(QUERY, KEY, VALUE, implementation='cudnn')


@pytest.mark.parametrize('case', [name for name in CASES if name != 'everything'])
def test_what_cudnn_is_told_means_the_same(case, monkeypatch):
    """Of a masked window and segments too; here XLA answers in its place."""

    def stand_in(*arrays, implementation, **options):
        assert implementation == 'cudnn'
        return dot_product_attention(*arrays, implementation='xla', **options)

    dot_product_attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(jax.nn, 'dot_product_attention', stand_in)
    inputs = [
        jnp.asarray(np.pad(x, [(0, 0)] * 3 + [(0, 2)]), 'bfloat16') for x in (QUERY, KEY, VALUE)
    ]
    got = attend(*inputs, **CASES[case])
    want = oracles.attention(*(np.asarray(x, np.float64) for x in inputs), **CASES[case])
    np.testing.assert_allclose(np.asarray(got, np.float32), want, atol=0.03)


def test_key_segments_need_segments():
    with pytest.raises(ValueError, match='without segments'):
        attend(QUERY, KEY, VALUE, key_segments=SEGMENTS)


def test_layer_against_its_projections():
    width = 5
    layer = Attention(H, K, C, causal=True, frequencies=Frequencies(100.0))
    x = RNG.normal(size=(B, T, width)).astype(np.float32)
    positions = np.tile(np.arange(T), (B, 1)) + np.array([[0], [3]])
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    p = jax.tree.map(lambda leaf: RNG.normal(size=leaf.value.shape) * 0.4, shapes['params'],
                     is_leaf=lambda leaf: hasattr(leaf, 'names'))  # fmt: skip
    got = jax.jit(layer.apply)({'params': jax.tree.map(jnp.asarray, p)}, x, SEGMENTS, positions)

    def project(name):
        return np.einsum('btd,dhc->bthc', x, p[name]['kernel']) + p[name]['bias']

    def turn(y):
        half = C // 2
        angles = positions[..., None, None] * 100.0 ** (-np.arange(half) / half)
        turned = (y[..., :half] + 1j * y[..., half:]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag], -1)

    query, key = turn(project('query')), turn(project('key'))
    mixed = oracles.attention(query, key, project('value'), causal=True, segments=SEGMENTS)
    want = np.einsum('bthc,hcd->btd', mixed, p['out']['kernel']) + p['out']['bias']
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_cache_keeps_the_newest_of_positions_that_share_a_place():
    """In whatever order they come: which of two writes to a place stays is not defined."""
    places, heads, size = 3, 2, 4
    cache = Cache.empty(2, places, heads, size, jnp.float32)
    positions = np.array([[5, 4, 3, 2, 1, 0], [0, 3, 1, 2, 9, 9]])
    real = np.array([[True] * 6, [True] * 4 + [False] * 2])
    key = np.broadcast_to(positions[..., None, None], (2, 6, heads, size)).astype(np.float32)
    written = cache.write(jnp.asarray(key), jnp.asarray(-key), jnp.asarray(positions), real)
    np.testing.assert_array_equal(written.positions, [[3, 4, 5], [3, 1, 2]])
    stored = np.broadcast_to(np.asarray(written.positions)[:, None, :, None], written.keys.shape)
    np.testing.assert_array_equal(written.keys, stored)
    np.testing.assert_array_equal(written.values, -stored)
