import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from bigjax.config import MeshConfig
from bigjax.errors import ConfigError
from bigjax.sharding import rules
from bigjax.sharding.mesh import make_mesh

SIZES = {'data': 2, 'fsdp': 2, 'tensor': 2}


def test_names_become_mesh_axes():
    assert rules.spec(('embed', 'mlp'), (4, 6), SIZES, rules.PARAMETER_RULES) == (
        P(('fsdp',), ('tensor',)),
        [],
    )
    assert rules.spec(('batch', None), (4, 6), SIZES, rules.ACTIVATION_RULES)[0] == P(
        ('data', 'fsdp'), None
    )


def test_axes_of_size_one_are_left_out():
    sizes = {'data': 8, 'fsdp': 1, 'tensor': 1}
    assert rules.spec(('embed', 'mlp'), (4, 6), sizes, rules.PARAMETER_RULES)[0] == P(None, None)


def test_what_does_not_divide_stays_whole_and_says_so():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    shapes = {'layer': {'kernel': jax.ShapeDtypeStruct((3, 6), jnp.float32)}}
    shardings, notes = rules.parameter_shardings(
        {'layer': {'kernel': P('embed', 'mlp')}}, shapes, mesh
    )
    assert shardings['layer']['kernel'].spec == P(None, ('tensor',))
    assert notes == ['layer/kernel stays whole: embed=3 is not divisible by fsdp=2']


def test_unknown_names_and_collisions_are_refused():
    with pytest.raises(
        ConfigError, match="no sharding rule for axis 'embde': did you mean 'embed'"
    ):
        rules.spec(('embde',), (4,), SIZES, rules.PARAMETER_RULES)
    with pytest.raises(ConfigError, match='on one mesh axis'):
        rules.spec(('mlp', 'heads'), (4, 4), SIZES, rules.PARAMETER_RULES)


def test_constrain_places_activations_inside_a_mesh_only():
    x = jnp.ones((8, 4))
    assert rules.constrain(x, ('batch', 'mlp')) is x
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, tensor=2))):
        placed = jax.jit(lambda x: rules.constrain(x, ('batch', 'mlp')))(x)
    assert placed.sharding.shard_shape(x.shape) == (2, 2)


def test_every_axis_of_every_parameter_rule_is_of_the_mesh():
    axes = set(make_mesh(MeshConfig()).axis_names)
    for table in (rules.PARAMETER_RULES, rules.ACTIVATION_RULES):
        assert {axis for found in table.values() for axis in found} <= axes
