"""Random variations of training batches, inside the jitted step.

One table, `AUGMENTATIONS`; the config names entries with their options, applied in its order. Each
draws its parameters from a key, one an example, and then varies every image on its own: the result
depends on neither the number of devices nor the mesh. What moves into an image is black.

Shapes: B batch, H height, W width, C channels (or classes, for targets).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array

from bigjax import schema
from bigjax.data.core import Batch, DataSpec
from bigjax.errors import ConfigError, nearest
from bigjax.schema import Fraction, Positive, PositiveInt, Range

WHERE = 'config.data.augment'


@dataclass(frozen=True)
class Crop:
    """A window of the image's own size out of the image with a black border of `padding` pixels."""

    padding: PositiveInt = 4


@dataclass(frozen=True)
class Flip:
    """Left and right exchanged."""

    probability: Fraction = 0.5


@dataclass(frozen=True)
class Rotation:
    """About the centre, by an angle drawn evenly from -degrees to degrees."""

    degrees: Annotated[float, Range(above=0, high=180)] = 15.0


@dataclass(frozen=True)
class Scaling:
    """About the centre, by a factor drawn evenly in its logarithm; above 1 enlarges."""

    low: Positive = 0.9
    high: Positive = 1.1

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f'low must not exceed high={self.high}, got {self.low}')


@dataclass(frozen=True)
class Cutout:
    """A black square of `size` pixels about a random pixel (DeVries and Taylor 2017, section 3)."""

    size: PositiveInt = 8


@dataclass(frozen=True)
class Mixup:
    """Convex combinations of two examples and of their targets, which become probabilities [B, C].

    The share of the first is drawn from Beta(alpha, alpha) (Zhang et al. 2018, section 2).
    """

    alpha: Positive = 0.2


def build(augment: Mapping[str, Any], spec: DataSpec) -> Callable[[Array, Batch], Batch]:
    """(key, batch) -> the batch augmented, then standardised: its inputs are float32.

    augment: name -> options (a mapping, or the value of the first of them); None leaves it out.
    Raises: ConfigError for an unknown name, bad options, or data that cannot be varied so.
    """
    steps = [_step(name, options, spec) for name, options in augment.items() if options is not None]

    def apply(key: Array, batch: Batch) -> Batch:
        raw = batch['inputs']
        batch = {**batch, 'inputs': _pixels(raw)}
        for index, step in enumerate(steps):
            batch = step(jax.random.fold_in(key, index), batch)
        is_image = raw.dtype == jnp.uint8
        return {**batch, 'inputs': _centred(batch['inputs'], spec)} if is_image else batch

    return apply if steps else lambda key, batch: standardise(batch, spec)


def standardise(batch: Batch, spec: DataSpec) -> Batch:
    """uint8 images as float32: pixels / 255, less the mean, over the deviation of each channel.

    Inputs of any other dtype pass unchanged.
    """
    inputs = batch['inputs']
    if isinstance(inputs, Mapping) or inputs.dtype != jnp.uint8:
        return batch
    return {**batch, 'inputs': _centred(_pixels(inputs), spec)}


def _pixels(inputs: Array) -> Array:
    return inputs.astype(jnp.float32) / 255 if inputs.dtype == jnp.uint8 else inputs


def _centred(pixels: Array, spec: DataSpec) -> Array:
    if not spec.mean:
        return pixels
    mean, std = (jnp.array(x, jnp.float32).reshape(1, 1, 1, -1) for x in (spec.mean, spec.std))
    return (pixels - mean) / std


def _step(name: str, options: Any, spec: DataSpec) -> Callable[[Array, Batch], Batch]:
    if name not in AUGMENTATIONS:
        raise ConfigError(f'unknown key {WHERE}.{name}: {nearest(name, AUGMENTATIONS)}')
    options_class, vary, misfit = AUGMENTATIONS[name]
    if reason := misfit(spec):
        raise ConfigError(f'{WHERE}.{name}: {reason}; leave it out')
    if not isinstance(options, Mapping):
        options = {dataclasses.fields(options_class)[0].name: options}
    return partial(vary, schema.build(options_class, options, f'{WHERE}.{name}'), spec)


# Geometry: one image [H, W, C] varied by given parameters. XLA fuses an image's computation into
# those that read it, once a reading, so each pixel is read by few: no select between two images.


def crop(image: Array, corner: Array, padding: int) -> Array:
    """The window at `corner` [2] (row, column) of the image with a border of `padding` pixels."""
    bordered = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return jax.lax.dynamic_slice(bordered, (corner[0], corner[1], 0), image.shape)


def flip(image: Array, flipped: Array) -> Array:
    """Left and right exchanged where `flipped`, a bool, says so."""
    columns = jnp.arange(image.shape[1])
    columns = jnp.where(flipped, image.shape[1] - 1 - columns, columns)
    return image.at[:, columns].get(mode='promise_in_bounds')


def rotate(image: Array, degrees: Array) -> Array:
    """Counterclockwise about the centre, bilinear."""
    height, width, _ = image.shape
    angle = degrees * (math.pi / 180)
    # From the centre. No matrix product: on a TPU it would round positions to bfloat16.
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
    x = jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2
    rows = jnp.cos(angle) * y + jnp.sin(angle) * x + (height - 1) / 2
    columns = jnp.cos(angle) * x - jnp.sin(angle) * y + (width - 1) / 2
    return _read_between(image, rows, columns)


def _read_between(image: Array, rows: Array, columns: Array) -> Array:
    """The image at fractional positions, bilinear between the four pixels around each."""
    height, width, _ = image.shape
    bordered = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    rows, columns = jnp.clip(rows + 1, 0, height + 1), jnp.clip(columns + 1, 0, width + 1)
    top = jnp.minimum(jnp.floor(rows), height).astype(jnp.int32)
    left = jnp.minimum(jnp.floor(columns), width).astype(jnp.int32)
    down, right = (rows - top)[..., None], (columns - left)[..., None]

    def pixels(y: Array, x: Array) -> Array:
        return bordered.at[y, x].get(mode='promise_in_bounds')

    above = (1 - right) * pixels(top, left) + right * pixels(top, left + 1)
    below = (1 - right) * pixels(top + 1, left) + right * pixels(top + 1, left + 1)
    return (1 - down) * above + down * below


def scale(image: Array, factor: Array) -> Array:
    """About the centre, bilinear; a factor above 1 enlarges."""
    centre = jnp.array(image.shape[:2], jnp.float32) / 2
    factors, translation = jnp.stack([factor, factor]), centre * (1 - factor)
    return jax.image.scale_and_translate(
        image, image.shape, (0, 1), factors, translation, 'linear', antialias=False
    )


def cut_out(image: Array, centre: Array, size: int) -> Array:
    """A black square of `size` pixels about `centre` [2], as far as it lies in the image."""
    height, width, _ = image.shape
    top, left = centre[0] - size // 2, centre[1] - size // 2
    y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    inside = (y >= top) & (y < top + size) & (x >= left) & (x < left + size)
    return jnp.where(inside, 0, image)


# Chance: parameters for every image of a batch [B, H, W, C], drawn from one key.


def _random_crop(options: Crop, key: Array, images: Array) -> Array:
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * options.padding + 1)
    return jax.vmap(partial(crop, padding=options.padding))(images, corners)


def _random_flip(options: Flip, key: Array, images: Array) -> Array:
    return jax.vmap(flip)(images, jax.random.bernoulli(key, options.probability, (len(images),)))


def _random_rotation(options: Rotation, key: Array, images: Array) -> Array:
    limit = options.degrees
    angles = jax.random.uniform(key, (len(images),), minval=-limit, maxval=limit)
    return jax.vmap(rotate)(images, angles)


def _random_scaling(options: Scaling, key: Array, images: Array) -> Array:
    low, high = math.log(options.low), math.log(options.high)
    exponents = jax.random.uniform(key, (len(images),), minval=low, maxval=high)
    return jax.vmap(scale)(images, jnp.exp(exponents))


def _random_cutout(options: Cutout, key: Array, images: Array) -> Array:
    centres = jax.random.randint(key, (len(images), 2), 0, jnp.array([images.shape[1:3]]))
    return jax.vmap(partial(cut_out, size=options.size))(images, centres)


def _on_images(vary: Callable[[Any, Array, Array], Array]) -> Callable[..., Batch]:
    def on_batch(options: Any, spec: DataSpec, key: Array, batch: Batch) -> Batch:
        return {**batch, 'inputs': vary(options, key, batch['inputs'])}

    return on_batch


def _mixup(options: Mixup, spec: DataSpec, key: Array, batch: Batch) -> Batch:
    """Pairs by a permutation of the whole global batch."""
    share_key, partner_key = jax.random.split(key)
    size = len(batch['inputs'])
    shares = jax.random.beta(share_key, options.alpha, options.alpha, (size,))
    partners = jax.random.permutation(partner_key, size)

    def mix(rows: Array) -> Array:
        share = shares.reshape(-1, *(1,) * (rows.ndim - 1))
        return share * rows + (1 - share) * rows[partners]

    targets = batch['targets']
    if targets.ndim == 1 and spec.num_classes:
        targets = jax.nn.one_hot(targets, spec.num_classes)
    return {**batch, 'inputs': mix(batch['inputs']), 'targets': mix(targets.astype(jnp.float32))}


def _unless_images(spec: DataSpec) -> str:
    is_image = not isinstance(spec.inputs, Mapping) and len(spec.inputs.shape) == 3
    return '' if is_image else 'the inputs are not images [H, W, C]'


def _unless_numbers(spec: DataSpec) -> str:
    is_number = not isinstance(spec.inputs, Mapping) and not spec.vocab_size
    return '' if is_number else 'the inputs are not images or vectors, which could be mixed'


AUGMENTATIONS: Mapping[str, tuple[Any, Callable[..., Batch], Callable[[DataSpec], str]]] = {
    'crop': (Crop, _on_images(_random_crop), _unless_images),
    'flip': (Flip, _on_images(_random_flip), _unless_images),
    'rotation': (Rotation, _on_images(_random_rotation), _unless_images),
    'scaling': (Scaling, _on_images(_random_scaling), _unless_images),
    'cutout': (Cutout, _on_images(_random_cutout), _unless_images),
    'mixup': (Mixup, _mixup, _unless_numbers),
}
"""name -> its options, (options, spec, key, batch) -> batch, and why data cannot be varied so."""
