import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import schema
from bigjax.analysis.attention_maps import attention_maps, unstacked
from bigjax.errors import ConfigError
from bigjax.models import mlp, transformer

B, T, V = 2, 9, 11  # T: more than a head has channels
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, V, size=(B, T)).astype(np.int32)
TINY = {'layers': 2, 'width': 16, 'heads': 4, 'mlp': 24}


def build(inputs=TOKENS, **options):
    config = schema.build(transformer.Config, {**TINY, **options}, 'config.model')
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    model = transformer.build(config, shapes, V, jnp.float32)
    rng = np.random.default_rng(1)
    shapes = model.abstract()
    return model, jax.tree.map(lambda leaf: jnp.float32(rng.normal(size=leaf.shape) / 2), shapes)


def test_rows_sum_to_one_and_none_looks_ahead():
    model, variables = build()
    maps = attention_maps(model, variables, TOKENS)
    assert sorted(maps) == ['block_0/attention', 'block_1/attention']
    for weights in maps.values():
        assert weights.shape == (B, 4, T, T)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        assert (np.triu(weights, 1) == 0).all()
        assert (np.asarray(weights)[:, :, np.tri(T, dtype=bool)] > 0).all()
    assert np.abs(maps['block_0/attention'][:, 0] - maps['block_0/attention'][:, 1]).max() > 0.01


def test_weights_against_softmax_by_hand():
    """Of the first layer: grouped heads, no rotation."""
    model, variables = build(kv_heads=2, attention='bidirectional')
    found = attention_maps(model, variables, TOKENS)['block_0/attention']
    params = jax.tree.map(np.float64, variables['params'])
    x = params['embed']['embedding'][TOKENS] + params['positions']['embedding'][None, :T]
    norm, layer = params['block_0']['attention_norm'], params['block_0']['attention']
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * norm['scale'] + norm['bias']
    query, key = (
        np.einsum('btd,dhc->bhtc', x, layer[name]['kernel']) + layer[name]['bias'][:, None]
        for name in ('query', 'key')
    )
    logits = np.einsum('bhtc,bhsc->bhts', query, key.repeat(2, axis=1)) / 2
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    np.testing.assert_allclose(found, weights / weights.sum(-1, keepdims=True), atol=1e-5)


def test_segments_do_not_see_each_other():
    segments = np.repeat([[1] * 4 + [2] * 5], B, 0).astype(np.int32)
    inputs = {'tokens': TOKENS, 'segments': segments}
    model, variables = build(inputs)
    weights = attention_maps(model, variables, inputs)['block_1/attention']
    assert (np.asarray(weights)[:, :, 4:, :4] == 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


def test_scanned_layers_are_refused_and_unstacked():
    model, variables = build(scan=True)
    with pytest.raises(ConfigError, match='expected layers that are not scanned'):
        attention_maps(model, variables, TOKENS)
    plain, _ = build(scan=False)
    flat = {'params': unstacked(variables['params'])}
    np.testing.assert_allclose(
        plain.apply(flat, TOKENS)[0], model.apply(variables, TOKENS)[0], atol=1e-4
    )
    assert len(attention_maps(plain, flat, TOKENS)) == 2


def test_a_model_without_attention_is_refused():
    model = mlp.build(mlp.Config((4,)), jax.ShapeDtypeStruct((2, 3), jnp.float32), 2, jnp.float32)
    with pytest.raises(ConfigError, match='attention layers, got none'):
        attention_maps(model, model.init(jax.random.key(0)), jnp.ones((2, 3)))
