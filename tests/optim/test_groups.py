"""Kinds of parameter, and layers stacked along leading axes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from bigjax.optim.groups import is_hidden_matrix, kind
from bigjax.optim.stacked import num_stacked, per_layer


@pytest.mark.parametrize(
    ('name', 'shape', 'axes', 'expected', 'hidden'),
    [
        ('block/dense/kernel', (8, 4), P('embed', 'mlp'), 'kernel', True),
        ('blocks/dense/kernel', (3, 8, 4), P('layers', 'embed', 'mlp'), 'kernel', True),
        ('moe/out_kernel', (3, 8, 4), P('experts', 'mlp', 'embed'), 'kernel', True),
        ('moe/out_bias', (3, 4), P('experts', 'embed'), 'bias', False),
        ('conv/kernel', (3, 3, 4, 4), P(None, None, 'embed', 'mlp'), 'kernel', True),
        ('stem/kernel', (3, 3, 1, 4), P(None, None, 'input', 'mlp'), 'kernel', False),
        ('head/kernel', (8, 10), P('embed', 'output'), 'kernel', False),
        ('head/kernel', (8, 10), P('embed', 'vocab'), 'kernel', False),
        ('lstm/recurrent', (8, 32), P(), 'kernel', True),
        ('embed/table', (10, 8), P('vocab', 'embed'), 'embedding', False),
        ('positions/table', (16, 8), P('position', 'embed'), 'embedding', False),
        ('user/embedding', (10, 8), P(), 'embedding', False),
        ('blocks/dense/bias', (3, 4), P('layers', 'mlp'), 'bias', False),
        ('norm/scale', (8,), P('norm'), 'scale', False),
        ('blocks/offset', (3, 8), P('layers', 'embed'), 'bias', False),
    ],
)
def test_kind(name, shape, axes, expected, hidden):
    p = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert kind(name, p, axes) == expected
    assert is_hidden_matrix(name, p, axes) == hidden


def test_layers_must_lead():
    assert num_stacked('w', P('layers', 'layers', 'embed')) == 2
    assert num_stacked('w', P('layers', 'experts', 'embed')) == 2
    for axes in (P('embed', 'layers'), P('experts', 'layers'), P('embed', 'experts')):
        with pytest.raises(ValueError, match="'layers', then 'experts', must come first"):
            num_stacked('w', axes)


def test_stacks_of_stacks():
    unit = optax.stateless(lambda u, _: jax.tree.map(lambda g: g / jnp.linalg.norm(g), u))
    grads = {'twice': jnp.arange(1.0, 25.0).reshape(2, 3, 4), 'once': jnp.ones((3, 4))}
    transform = per_layer(unit, {'twice': 2, 'once': 1})
    updates, _ = transform.update(grads, transform.init(grads), grads)
    norms = {name: np.linalg.norm(update, axis=-1) for name, update in updates.items()}
    np.testing.assert_allclose(norms['twice'], np.ones((2, 3)), rtol=1e-6)
    np.testing.assert_allclose(norms['once'], np.ones(3), rtol=1e-6)
