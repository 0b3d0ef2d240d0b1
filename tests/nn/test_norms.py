from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bigjax.errors import ConfigError
from bigjax.nn.norms import NORMS, BatchNorm, GroupNorm, LayerNorm, Norm, RMSNorm, make_norm

RNG = np.random.default_rng(0)
X = (3 + 2 * RNG.normal(size=(4, 3, 5, 8))).astype(np.float32)
SCALE, BIAS = RNG.normal(size=8).astype(np.float32), RNG.normal(size=8).astype(np.float32)
PARAMS = {'scale': SCALE, 'bias': BIAS}


def standardised(x, axes, epsilon):
    x = x.astype(np.float64)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def test_layer_norm():
    got = LayerNorm().apply({'params': PARAMS}, X)
    np.testing.assert_allclose(got, standardised(X, -1, 1e-6) * SCALE + BIAS, atol=1e-5)


def test_rms_norm():
    got = RMSNorm().apply({'params': {'scale': SCALE}}, X)
    rms = np.sqrt((X.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(got, X / rms * SCALE, atol=1e-5)


def test_group_norm():
    got = GroupNorm(groups=2).apply({'params': PARAMS}, X)
    halves = [standardised(half, (1, 2, 3), 1e-5) for half in np.split(X, 2, axis=-1)]
    np.testing.assert_allclose(got, np.concatenate(halves, -1) * SCALE + BIAS, atol=1e-5)


def test_group_norm_refuses_channels_that_do_not_divide():
    with pytest.raises(ConfigError, match=r'divisible by 3 groups, got 8'):
        GroupNorm(groups=3).init(jax.random.key(0), X)


def test_batch_norm_normalises_by_the_batch_and_keeps_running_averages():
    old = {'mean': np.full(8, 5.0, np.float32), 'var': np.full(8, 7.0, np.float32)}
    variables = {'params': PARAMS, 'batch_stats': old}
    got, changed = BatchNorm().apply(variables, X, train=True, mutable=['batch_stats'])
    np.testing.assert_allclose(got, standardised(X, (0, 1, 2), 1e-5) * SCALE + BIAS, atol=1e-5)
    new = changed['batch_stats']
    channels = X.reshape(-1, 8).astype(np.float64)
    np.testing.assert_allclose(new['mean'], 0.9 * 5 + 0.1 * channels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(new['var'], 0.9 * 7 + 0.1 * channels.var(0, ddof=1), rtol=1e-5)


def test_batch_norm_evaluates_with_the_running_averages():
    mean, var = RNG.normal(size=8), RNG.uniform(1, 2, size=8)
    variables = {'params': PARAMS, 'batch_stats': {'mean': mean, 'var': var}}
    got = BatchNorm().apply(variables, X, train=False)
    np.testing.assert_allclose(got, (X - mean) / np.sqrt(var + 1e-5) * SCALE + BIAS, rtol=1e-4)


def test_batch_norm_of_a_sharded_batch_is_that_of_the_global_batch():
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    x = (RNG.normal(size=(16, 8)) + 10 * np.arange(16)[:, None]).astype(np.float32)
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
    variables = BatchNorm().init(jax.random.key(0), x)

    @jax.jit
    def apply(x):
        return BatchNorm().apply(variables, x, train=True, mutable=['batch_stats'])

    got, changed = apply(sharded)
    assert len(got.sharding.device_set) == 8
    np.testing.assert_allclose(got, standardised(x, 0, 1e-5), atol=1e-4)
    np.testing.assert_allclose(changed['batch_stats']['mean'], 0.1 * x.mean(0), rtol=1e-5)


@pytest.mark.parametrize('kind', get_args(Norm))
def test_statistics_are_float32_under_bfloat16(kind):
    # Numbers near 40 squared, or summed, in bfloat16 would keep two digits.
    x = (40 + RNG.normal(size=(4, 6, 64))).astype(jnp.bfloat16)
    options = {'groups': 2} if kind == 'group' else {}
    norm = make_norm(kind, dtype=jnp.bfloat16, **options)
    variables = norm.init(jax.random.key(0), x)
    got, _ = norm.apply(variables, x, True, mutable=['batch_stats'])
    want, _ = norm.clone(dtype=jnp.float32).apply(
        variables, x.astype(np.float32), True, mutable=['batch_stats']
    )
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), want, rtol=2**-8, atol=1e-6)


def test_kinds_of_configs_are_the_table():
    assert set(get_args(Norm)) == set(NORMS)
