import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigjax.data import augment
from bigjax.data.core import DataSpec
from bigjax.errors import ConfigError

SHAPE = (9, 9, 2)
KEY = jax.random.key(3)


def spec_of(shape=SHAPE, dtype=np.uint8, num_classes=4, **options) -> DataSpec:
    inputs, targets = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((), np.int32)
    return DataSpec(inputs, targets, num_classes, **options)


def batch_of(size: int, shape=SHAPE) -> dict[str, np.ndarray]:
    """uint8 images without any black pixel."""
    rng = np.random.default_rng(0)
    return {
        'inputs': rng.integers(1, 256, (size, *shape), np.uint8),
        'targets': np.arange(size, dtype=np.int32) % 4,
        'weights': np.ones(size, np.float32),
    }


def augmented(options: dict, batch: dict, spec: DataSpec | None = None, key=KEY) -> dict:
    return jax.jit(augment.build(options, spec or spec_of()))(key, batch)


IMAGE = np.random.default_rng(1).random(SHAPE, np.float32)


def test_rotation_by_no_angle_is_the_identity_and_by_right_angles_is_rot90():
    np.testing.assert_array_equal(augment.rotate(IMAGE, jnp.float32(0)), IMAGE)
    for turns in (1, 2, -1):
        rotated = augment.rotate(IMAGE, jnp.float32(90 * turns))
        np.testing.assert_allclose(rotated, np.rot90(IMAGE, turns), atol=1e-5)


@pytest.mark.parametrize('shape', [(9, 9, 2), (7, 12, 1)])
def test_rotation_agrees_with_scipy(shape):
    image = np.random.default_rng(2).random(shape, np.float32)
    expected = scipy.ndimage.rotate(image, 33, reshape=False, order=1, mode='grid-constant')
    np.testing.assert_allclose(augment.rotate(image, jnp.float32(33)), expected, atol=1e-4)


@pytest.mark.parametrize('factor', [0.6, 1.0, 1.7])
def test_scaling_agrees_with_scipy(factor):
    centre = (np.array(SHAPE[:2]) - 1) / 2
    matrix = np.eye(2) / factor
    expected = [
        scipy.ndimage.affine_transform(
            IMAGE[..., c], matrix, centre - matrix @ centre, order=1, mode='nearest'
        )
        for c in range(SHAPE[-1])
    ]
    read_at = (np.arange(SHAPE[0]) - centre[0]) / factor + centre[0]
    inside = (read_at >= -0.5) & (read_at <= SHAPE[0] - 0.5)  # the pixels' own area
    expected = np.stack(expected, -1) * np.outer(inside, inside)[..., None]
    np.testing.assert_allclose(augment.scale(IMAGE, jnp.float32(factor)), expected, atol=1e-5)


def test_a_crop_is_a_shift_with_a_black_border_and_all_shifts_are_as_likely():
    batch = batch_of(1)
    image = batch['inputs'][0].astype(np.float32) / 255
    bordered = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    shifts = [bordered[i : i + 9, j : j + 9] for i in range(3) for j in range(3)]
    copies = {name: np.repeat(rows, 900, axis=0) for name, rows in batch.items()}
    crops = np.asarray(augmented({'crop': {'padding': 1}}, copies)['inputs'])
    matches = np.stack([(np.abs(crops - shift) < 1e-6).all(axis=(1, 2, 3)) for shift in shifts])
    assert (matches.sum(axis=0) == 1).all()
    counts = matches.sum(axis=1)
    assert np.abs(counts - 100).max() < 4 * np.sqrt(100 * 8 / 9)


def test_flips_exchange_left_and_right_with_the_given_probability():
    batch = batch_of(2000, (3, 4, 1))
    pixels = batch['inputs'].astype(np.float32) / 255
    flipped = np.asarray(augmented({'flip': 0.25}, batch, spec_of((3, 4, 1)))['inputs'])
    same = np.isclose(flipped, pixels).all(axis=(1, 2, 3))
    mirrored = np.isclose(flipped, pixels[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(mirrored.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 2000)
    twice = augmented({'flip': 1.0}, {**batch, 'inputs': flipped}, spec_of((3, 4, 1)))['inputs']
    np.testing.assert_array_equal(twice[:, :, ::-1], flipped)


def test_cutout_blackens_a_square_and_nothing_else():
    cut = np.asarray(augment.cut_out(IMAGE + 1, jnp.array([4, 2]), 3))
    expected = IMAGE + 1
    expected[3:6, 1:4] = 0
    np.testing.assert_array_equal(cut, expected)
    at_corner = np.asarray(augment.cut_out(IMAGE + 1, jnp.array([0, 8]), 4))
    assert (at_corner == 0).sum() == 2 * 3 * SHAPE[-1]  # rows -2..1, columns 6..9

    batch = batch_of(500)
    black = np.asarray(augmented({'cutout': 3}, batch)['inputs'] == 0)[..., 0]
    sizes = black.sum(axis=(1, 2))
    assert set(sizes.tolist()) == {4, 6, 9}  # centred on a corner, an edge, or inside
    assert abs((sizes == 9).mean() - (7 / 9) ** 2) < 0.1


def test_mixup_is_convex_and_mixes_targets_by_the_same_beta_distributed_share():
    size, alpha = 2000, 0.3
    pixel = np.arange(size, dtype=np.float32)  # says which row it is of
    batch = {'inputs': pixel.reshape(-1, 1, 1, 1), 'targets': np.arange(size, dtype=np.int32)}
    spec = spec_of((1, 1, 1), np.float32, num_classes=size)
    mixed = jax.tree.map(np.asarray, augmented({'mixup': alpha}, batch, spec))
    targets = mixed['targets']
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    assert targets.min() >= 0
    assert ((targets > 0).sum(axis=1) <= 2).all()
    np.testing.assert_allclose(targets @ pixel, mixed['inputs'].ravel(), rtol=1e-4, atol=1e-3)
    partners = [set(np.flatnonzero(row)) - {i} for i, row in enumerate(targets)]
    assert len(set().union(*partners)) == sum(map(len, partners)) > size / 2  # a permutation

    shares = np.diagonal(targets)
    assert abs(shares.mean() - 0.5) < 0.05
    assert abs(shares.var() - 1 / (4 * (2 * alpha + 1))) < 0.02  # the variance of Beta(a, a)


def test_mixup_of_numbers_and_of_several_labels():
    numbers = {'inputs': np.ones((8, 3), np.float32), 'targets': np.arange(8, dtype=np.float32)}
    spec = DataSpec(jax.ShapeDtypeStruct((3,), np.float32), jax.ShapeDtypeStruct((), np.float32))
    mixed = augmented({'mixup': {}}, numbers, spec)
    assert mixed['targets'].shape == (8,)
    np.testing.assert_allclose(mixed['targets'].sum(), 28, rtol=0.5)
    labels = {**numbers, 'targets': np.ones((8, 4), np.int32)}
    mixed = augmented({'mixup': {}}, labels, spec_of((3,), np.float32))
    np.testing.assert_allclose(mixed['targets'], 1, rtol=1e-6)


ALL = {
    'crop': {'padding': 2},
    'flip': {},
    'rotation': 20.0,
    'scaling': {'low': 0.8, 'high': 1.25},
    'cutout': 3,
    'mixup': {},
}


def test_all_of_them_together_are_the_same_on_one_device_and_on_eight():
    batch = batch_of(16)
    one = augmented(ALL, batch)
    mesh = Mesh(np.array(jax.devices()[:8]), ('data',))
    sharding = NamedSharding(mesh, PartitionSpec('data'))
    eight = augmented(ALL, jax.device_put(batch, sharding))
    for name in ('inputs', 'targets', 'weights'):
        np.testing.assert_allclose(eight[name], one[name], atol=1e-6)
    assert one['inputs'].shape == batch['inputs'].shape
    other = augmented(ALL, batch, key=jax.random.key(4))
    assert not np.allclose(other['inputs'], one['inputs'])


def test_only_mixup_makes_devices_talk():
    mesh = Mesh(np.array(jax.devices()[:8]), ('data',))
    batch = jax.device_put(batch_of(16), NamedSharding(mesh, PartitionSpec('data')))
    alone = augment.build(
        {name: options for name, options in ALL.items() if name != 'mixup'}, spec_of()
    )
    compiled = jax.jit(alone).lower(KEY, batch).compile()
    for collective in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'):
        assert collective not in compiled.as_text()


def test_images_are_standardised_alike_with_and_without_augmentation():
    spec = spec_of(mean=(0.25, 0.5), std=(0.5, 2.0))
    batch = batch_of(4)
    expected = (batch['inputs'] / 255 - np.array([0.25, 0.5])) / np.array([0.5, 2.0])
    plain = augment.standardise(batch, spec)
    np.testing.assert_allclose(plain['inputs'], expected, atol=1e-6)
    assert plain['inputs'].dtype == jnp.float32
    for options in ({}, {'flip': 0.0}, {'flip': None}):
        np.testing.assert_allclose(augmented(options, batch, spec)['inputs'], expected, atol=1e-6)
    again = augment.standardise(plain, spec)
    np.testing.assert_array_equal(again['inputs'], plain['inputs'])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'flipp': {}}, r"unknown key config.data.augment.flipp: did you mean 'flip'"),
        ({'crop': {'pading': 4}}, r"unknown key config.data.augment.crop.pading: .*'padding'"),
        ({'crop': 0}, r'config.data.augment.crop.padding: expected a number >= 1, got 0'),
        ({'rotation': 200.0}, r'rotation.degrees: expected a number > 0 and <= 180, got 200'),
        ({'scaling': {'low': 2.0}}, r'scaling.low: expected a number > 0 and <= 1, got 2.0'),
        ({'mixup': float('nan')}, r'mixup.alpha'),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        augment.build(options, spec_of())


def test_data_that_cannot_be_varied_is_refused():
    tokens = spec_of((16,), np.int32, vocab_size=256)
    with pytest.raises(ConfigError, match=r'augment.flip: the inputs are not images'):
        augment.build({'flip': {}}, tokens)
    with pytest.raises(ConfigError, match=r'augment.mixup: the inputs are not images or vectors'):
        augment.build({'mixup': {}}, tokens)
