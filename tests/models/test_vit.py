import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import schema
from bigjax.errors import ConfigError
from bigjax.models import vit
from tests.models import checks

IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
TINY = {'layers': 2, 'width': 16, 'heads': 2, 'patch': 4}


def build(shape=IMAGES.shape, outputs=5, **options):
    config = schema.build(vit.Config, options, 'config.model')
    return vit.build(config, jax.ShapeDtypeStruct(shape, jnp.float32), outputs, jnp.float32)


def test_parameter_counts_of_the_paper():
    shape = (1, 224, 224, 3)
    assert checks.count(build(shape, 1000)) == 22_050_664
    assert checks.count(build(shape, 1000, width=768, heads=12)) == 86_567_656


@pytest.mark.parametrize('pool', ['token', 'mean'])
def test_every_pixel_and_every_parameter_counts(pool):
    model = build(**TINY, pool=pool)
    checks.assert_axes_are_named(model)
    variables = checks.random_variables(model)
    slopes = jax.grad(lambda x: jnp.sum(model.apply(variables, x, train=False)[0] ** 2))(IMAGES)
    assert (np.abs(slopes) > 0).all()
    for grad in jax.tree.leaves(checks.gradients(model, variables, IMAGES)):
        assert np.abs(grad).max() > 0


def test_positions_tell_patches_apart():
    model = build(**TINY, pool='mean')
    variables = checks.random_variables(model)
    swapped = np.concatenate([IMAGES[:, 4:], IMAGES[:, :4]], axis=1)
    one, two = (checks.outputs(model, variables, images) for images in (IMAGES, swapped))
    assert np.abs(one - two).max() > 1e-3


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match='a divisor of the image sides 8 and 8'):
        build(patch=3)
    with pytest.raises(ConfigError, match='images'):
        build(shape=(2, 30))
