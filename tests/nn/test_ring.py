"""Attention to keys that go round eight devices is what one device computes."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.config import MeshConfig
from bigjax.errors import ConfigError
from bigjax.nn import partials
from bigjax.nn.attend import Dropout, attend
from bigjax.sharding.mesh import make_mesh
from tests.nn import oracles

B, T, H, K, C = 4, 48, 4, 2, 6
RNG = np.random.default_rng(0)
QUERY = RNG.normal(size=(B, T, H, C)).astype(np.float32)
KEY, VALUE = RNG.normal(size=(2, B, T, K, C)).astype(np.float32)
WEIGHTS = RNG.normal(size=QUERY.shape).astype(np.float32)
SEGMENTS = np.sort(RNG.integers(0, 4, (B, T)), axis=1)
CASES = {
    'all': {},
    'causal': {'causal': True},
    'window': {'window': 8},
    'causal_stride': {'causal': True, 'stride': 5},
    'everything': {'causal': True, 'window': 20, 'segments': SEGMENTS, 'logit_soft_cap': 0.7},
}
MESHES = {
    'context': MeshConfig(data=1, context=8),
    'all_axes': MeshConfig(fsdp=2, context=2, tensor=2),
}


def results(rate=0.0, implementation='dense', **options):
    """What comes out, and the gradients of a weighted sum of it."""

    def loss(query, key, value, rng):
        dropout = Dropout(rate, rng) if rate else None
        out = attend(query, key, value, dropout=dropout, implementation=implementation, **options)
        return jnp.sum(out * WEIGHTS), out

    compute = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, out), gradients = compute(QUERY, KEY, VALUE, jax.random.key(1))
    return jax.tree.map(np.asarray, (out, *gradients))


def assert_same(got, want):
    for ours, theirs in zip(got, want, strict=True):
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, atol=5e-6)


@pytest.mark.parametrize('mesh', MESHES)
@pytest.mark.parametrize('case', CASES)
def test_values_and_gradients(case, mesh):
    with jax.set_mesh(make_mesh(MESHES[mesh])):
        got = results(**CASES[case])
    np.testing.assert_allclose(
        got[0], oracles.attention(QUERY, KEY, VALUE, **CASES[case]), atol=2e-6
    )
    assert_same(got, results(**CASES[case]))


def test_blocks_and_noise_are_the_same(monkeypatch):
    """Blocks of 5, of which two and a part are on a device, drop what all at once would."""
    want = results(rate=0.3, **CASES['everything'])
    assert np.abs(want[0] - results(**CASES['everything'])[0]).max() > 0.1
    monkeypatch.setattr(partials, 'BLOCK', 5)
    assert_same(results(rate=0.3, implementation='chunked', **CASES['everything']), want)
    with jax.set_mesh(make_mesh(MeshConfig(context=4))):
        got = results(rate=0.3, implementation='chunked', **CASES['everything'])
    assert_same(got, want)


def test_parts_out_of_reach_are_skipped():
    """NaNs there would spoil the result if they were read."""
    value = VALUE.copy()
    value[:, 24:] = np.nan
    with jax.set_mesh(make_mesh(MESHES['context'])):
        got = jax.jit(partial(attend, causal=True))(QUERY, KEY, value)
    assert np.isfinite(got[:, :24]).all()


def test_no_device_holds_the_whole_sequence():
    """In the backward pass either: nothing is 1016 long, and memory is not that of 8 parts."""

    def compiled(length):
        x = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
        loss = partial(attend, causal=True, implementation='dense')
        gradient = jax.grad(lambda *inputs: loss(*inputs).sum(), argnums=(0, 1, 2))
        return jax.jit(gradient, in_shardings=split, out_shardings=split).lower(x, x, x).compile()

    mesh = make_mesh(MESHES['context'])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'context'))
    with jax.set_mesh(mesh):
        program = compiled(1016)
    assert re.search(r'\[[\d,]*\b127\b', program.as_text())
    assert not re.search(r'\[[\d,]*\b1016\b', program.as_text())
    logits = 4 * 127 * 127
    assert program.memory_analysis().temp_size_in_bytes < 8 * logits


def test_cudnn_is_refused(monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    inputs = [jnp.zeros((*x.shape[:3], 8), jnp.bfloat16) for x in (QUERY, KEY, VALUE)]
    with jax.set_mesh(make_mesh(MESHES['context'])), pytest.raises(ConfigError, match='context'):
        attend(*inputs, implementation='cudnn')
