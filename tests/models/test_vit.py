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


def build(shape=IMAGES.shape, outputs=5, dtype=jnp.float32, **options):
    config = schema.build(vit.Config, options, 'config.model')
    return vit.build(config, jax.ShapeDtypeStruct(shape, jnp.float32), outputs, dtype)


def test_parameter_counts_of_the_paper():
    shape = (1, 224, 224, 3)
    assert checks.count(build(shape, 1000)) == 22_050_664
    assert checks.count(build(shape, 1000, width=768, heads=12)) == 86_567_656


def test_parameter_count_of_a_small_one():
    model = build((1, 28, 28, 1), 10, layers=2, width=32, heads=4, mlp=64, patch=7)
    embed = 49 * 32 + 32 + 32 + (16 + 1) * 32  # kernel, bias, class token, positions
    block = 2 * 2 * 32 + 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32
    assert checks.count(model) == embed + 2 * block + 2 * 32 + 32 * 10 + 10


def test_patches_are_squares_row_by_row():
    images = np.random.default_rng(1).normal(size=(2, 6, 4, 3)).astype(np.float32)
    patches = np.asarray(vit.in_patches(images, 2))
    assert patches.shape == (2, 6, 12)
    for i, (row, column) in enumerate(np.ndindex(3, 2)):
        square = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(patches[:, i], square.reshape(2, -1))


@pytest.mark.parametrize('pool', ['token', 'mean'])
def test_every_pixel_and_every_parameter_counts(pool):
    model = build(**TINY, pool=pool)
    checks.assert_axes_are_named(model)
    variables = checks.random_variables(model)
    slopes = jax.grad(lambda x: jnp.sum(model.apply(variables, x, train=False)[0] ** 2))(IMAGES)
    assert (np.abs(slopes) > 0).all()
    # the bias of keys adds the same to all logits of a query: nothing depends on it
    checks.assert_gradients_reach_all_parameters(build(**TINY, pool=pool, bias=False), IMAGES)


def test_gradients_survive_sharding():
    images = np.random.default_rng(2).normal(size=(8, 8, 8, 1)).astype(np.float32)
    model = build(images.shape, **TINY, bias=False, stochastic_depth=0.3, dropout=0.1, scan=True)
    checks.assert_gradients_survive_sharding(model, images)


def test_stochastic_depth_is_of_training_alone():
    model = build(**TINY, stochastic_depth=0.5)
    variables = checks.random_variables(model)
    quiet = checks.outputs(model, variables, IMAGES)
    np.testing.assert_array_equal(quiet, checks.outputs(build(**TINY), variables, IMAGES))
    noisy = [
        model.apply(variables, IMAGES, train=True, rngs={'dropout': jax.random.key(k)})[0]
        for k in range(2)
    ]
    assert not np.allclose(noisy[0], noisy[1])


def test_bfloat16_is_close_and_puts_out_float32():
    variables = checks.random_variables(build(**TINY))
    want = checks.outputs(build(**TINY), variables, IMAGES)
    got = checks.outputs(build(**TINY, dtype=jnp.bfloat16), variables, IMAGES)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=0.04 * np.abs(want).max())
    assert (got != want).any()


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
