import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from bigjax.nn import initializers, params
from bigjax.nn.linear import Dense


class Square(nn.Module):
    axes: tuple = ('embed', 'mlp')

    @nn.compact
    def __call__(self, x):
        return x @ params.param(self, 'kernel', initializers.ones, (3, 3), self.axes)


def test_unbox_gives_plain_arrays_and_logical_axes_the_names():
    boxed = Square().init(jax.random.key(0), jnp.ones((2, 3)))
    assert params.logical_axes(boxed) == {'params': {'kernel': PartitionSpec('embed', 'mlp')}}
    kernel = params.unbox(boxed)['params']['kernel']
    assert isinstance(kernel, jax.Array)
    assert kernel.dtype == jnp.float32


def test_one_name_a_dimension():
    with pytest.raises(ValueError, match='2 dimensions, 1 axis names'):
        Square(('embed',)).init(jax.random.key(0), jnp.ones((2, 3)))


def test_scanned_layers_gain_a_named_axis():
    stack = nn.scan(
        lambda layer, carry, _: (layer(carry), None),
        variable_axes={'params': 0},
        split_rngs={'params': True},
        length=4,
        metadata_params={nn.PARTITION_NAME: 'layers'},
    )

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            return stack(Dense(3, ('embed', 'mlp')), x, None)[0]

    boxed = jax.eval_shape(Deep().init, jax.random.key(0), jnp.ones((2, 3)))
    (axes,) = params.logical_axes(boxed)['params'].values()
    assert axes['kernel'] == PartitionSpec('layers', 'embed', 'mlp')
    (shapes,) = params.unbox(boxed)['params'].values()
    assert shapes['kernel'].shape == (4, 3, 3)
