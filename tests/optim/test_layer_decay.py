"""Learning rates that fall from the head down to the embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from bigjax.config import OptimizerConfig
from bigjax.errors import ConfigError
from bigjax.optim import optimizers

APART = {f'block_{i}': {'mlp': {'kernel': P('embed', 'mlp')}} for i in range(3)}
STACKED = {'blocks': {'mlp': {'kernel': P('layers', 'embed', 'mlp')}}}
OUTSIDE = {
    'embed': {'embedding': P('vocab', 'embed')},
    'final_norm': {'scale': P('norm')},
    'lora': {'block_1.mlp.kernel': {'a': P('embed', 'rank')}},
}


def update(axes, **values):
    """The first update of sgd with gradients of one and a rate of one."""
    sizes = {'layers': 3}
    params = jax.tree.map(
        lambda names: jnp.ones([sizes.get(name, 2) for name in names]),
        axes,
        is_leaf=lambda leaf: isinstance(leaf, P),
    )
    config = OptimizerConfig('sgd', learning_rate=1.0, **values)
    optimizer = optimizers.build(config, optax.constant_schedule(1.0), params, axes)
    return optimizer.update(params, optimizer.init(params), params)[0]


def test_closed_form():
    found = update({**APART, **OUTSIDE}, layer_decay=0.5)
    for i, factor in enumerate([1 / 8, 1 / 4, 1 / 2]):
        np.testing.assert_allclose(found[f'block_{i}']['mlp']['kernel'], -factor)
    np.testing.assert_allclose(found['embed']['embedding'], -1 / 16)
    np.testing.assert_allclose(found['final_norm']['scale'], -1)
    np.testing.assert_allclose(found['lora']['block_1.mlp.kernel']['a'], -1 / 4)


def test_a_stack_is_as_its_layers():
    apart = update({**APART, **OUTSIDE}, layer_decay=0.7)
    outside = {name: OUTSIDE[name] for name in ('embed', 'final_norm')}
    stacked = update({**STACKED, **outside}, layer_decay=0.7)
    for i in range(3):
        layer = stacked['blocks']['mlp']['kernel'][i]
        np.testing.assert_allclose(layer, apart[f'block_{i}']['mlp']['kernel'], rtol=1e-6)
    for name in outside:
        jax.tree.map(np.testing.assert_array_equal, stacked[name], apart[name])
    assert stacked['blocks']['mlp']['kernel'].dtype == jnp.float32


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ConfigError, match='layer_decay: expected 1 for a model without blocks'):
        update({'embed': OUTSIDE['embed']}, layer_decay=0.5)
    jax.tree.map(
        lambda leaf: np.testing.assert_array_equal(leaf, -1), update({'embed': OUTSIDE['embed']})
    )
