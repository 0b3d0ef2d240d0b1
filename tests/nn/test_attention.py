import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.nn import attention
from bigjax.nn.attention import attend

B, T, H, C = 2, 9, 4, 6
RNG = np.random.default_rng(0)
SEGMENTS = np.array([[1] * 3 + [2] * 4 + [0] * 2, [1] * 9], np.int32)


def arrays(key_heads=H, length=T):
    shapes = [(B, length, H, C), (B, length, key_heads, C), (B, length, key_heads, C)]
    return [RNG.normal(size=shape).astype(np.float32) for shape in shapes]


def oracle(query, key, value, causal=False, window=None, segments=None, logit_soft_cap=None):
    """Row by row in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros_like(query)
    group = query.shape[2] // key.shape[2]
    for b, t, h in np.ndindex(query.shape[:3]):
        logits = key[b, :, h // group] @ query[b, t, h] / np.sqrt(C)
        if logit_soft_cap:
            logits = logit_soft_cap * np.tanh(logits / logit_soft_cap)
        distance = t - np.arange(len(logits))
        seen = np.ones(len(logits), bool)
        if causal:
            seen &= distance >= 0
        if window:
            seen &= abs(distance) < window
        if segments is not None:
            seen &= segments[b] == segments[b, t]
        weights = np.where(seen, np.exp(logits - logits.max()), 0)
        out[b, t, h] = weights / weights.sum() @ value[b, :, h // group]
    return out


CASES = [
    {},
    {'causal': True},
    {'causal': True, 'window': 3},
    {'window': 2},
    {'causal': True, 'segments': SEGMENTS},
    {'causal': True, 'window': 4, 'segments': SEGMENTS, 'logit_soft_cap': 0.7},
]


@pytest.mark.parametrize('key_heads', [H, 2, 1])
@pytest.mark.parametrize('case', CASES, ids=str)
@pytest.mark.parametrize('implementation', ['dense', 'chunked'])
def test_against_float64(monkeypatch, implementation, case, key_heads):
    monkeypatch.setattr(attention, 'BLOCK', 4)  # the last block is not full
    query, key, value = arrays(key_heads)
    found = attend(query, key, value, implementation=implementation, **case)
    np.testing.assert_allclose(found, oracle(query, key, value, **case), atol=2e-6)


@pytest.mark.parametrize('case', [CASES[2], CASES[5]], ids=str)
def test_the_gradients_of_both_agree(monkeypatch, case):
    monkeypatch.setattr(attention, 'BLOCK', 4)
    inputs = arrays(2)

    def loss(inputs, implementation):
        return jnp.sum(attend(*inputs, implementation=implementation, **case) ** 2)

    dense, chunked = (jax.grad(loss)(inputs, name) for name in ('dense', 'chunked'))
    for one, other in zip(dense, chunked, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize('implementation', ['dense', 'chunked'])
def test_a_query_that_sees_nothing_gets_zeros(implementation):
    query, key, value = arrays()
    found = attend(
        query,
        key,
        value,
        segments=np.full((B, T), 1, np.int32),
        key_segments=np.full((B, T), 2, np.int32),
        implementation=implementation,
    )
    np.testing.assert_array_equal(found, 0)


def test_long_sequences_go_block_by_block(monkeypatch):
    monkeypatch.setattr(attention, 'DENSE_LENGTH', 8)
    query, key, value = arrays()
    long = jax.make_jaxpr(attend)(query, key, value)
    short = jax.make_jaxpr(attend)(query[:, :8], key[:, :8], value[:, :8])
    assert 'scan' in str(long)
    assert 'scan' not in str(short)
