"""Random variations of training batches, inside the jitted step.

One table, `AUGMENTATIONS`; the config names entries with their options, applied in its order. An
entry varies one image by a key of its own (mixup: two examples), so the result depends on neither
the number of devices nor the mesh. Its keyword-only arguments are the options, checked like the
fields of a config. What moves into an image is black.

Shapes: B batch, H height, W width, C channels (or classes, for targets); an image is [H, W, C].
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates

from bigjax import schema
from bigjax.data.core import Batch, DataSpec
from bigjax.errors import ConfigError, nearest
from bigjax.schema import Fraction, Positive, PositiveInt, Range

WHERE = 'config.data.augment'


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
    where = f'{WHERE}.{name}'
    if name not in AUGMENTATIONS:
        raise ConfigError(f'unknown key {where}: {nearest(name, AUGMENTATIONS)}')
    vary = AUGMENTATIONS[name]
    numbers = not isinstance(spec.inputs, Mapping) and not spec.vocab_size
    if not numbers or (vary is not mixup and len(spec.inputs.shape) != 3):
        fitting = 'images or vectors' if vary is mixup else 'images [H, W, C]'
        raise ConfigError(f'{where}: the inputs are not {fitting}; leave it out')
    cls = schema.options_of(vary)
    if not isinstance(options, Mapping):
        options = {dataclasses.fields(cls)[0].name: options}
    vary = partial(vary, **vars(schema.build(cls, options, where)))
    if name == 'mixup':
        return partial(vary, num_classes=spec.num_classes)

    def each(key: Array, batch: Batch) -> Batch:
        keys = jax.random.split(key, len(batch['inputs']))
        return {**batch, 'inputs': jax.vmap(vary)(keys, batch['inputs'])}

    return each


# XLA fuses an image's computation into those that read it, once a reading, so each pixel is read by
# few: no select between two images.


def crop(key: Array, image: Array, *, padding: PositiveInt = 4) -> Array:
    """A window of the image's own size out of the image with a black border of `padding` pixels."""
    bordered = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(bordered, (row, column, 0), image.shape)


def flip(key: Array, image: Array, *, probability: Fraction = 0.5) -> Array:
    """Left and right exchanged."""
    columns = jnp.arange(image.shape[1])
    flipped = jax.random.bernoulli(key, probability)
    columns = jnp.where(flipped, image.shape[1] - 1 - columns, columns)
    return image.at[:, columns].get(mode='promise_in_bounds')


def rotation(
    key: Array, image: Array, *, degrees: Annotated[float, Range(above=0, high=180)] = 15.0
) -> Array:
    """About the centre, by an angle drawn evenly from -degrees to degrees."""
    return rotate(image, jax.random.uniform(key, minval=-degrees, maxval=degrees))


def rotate(image: Array, degrees: Array) -> Array:
    """Counterclockwise about the centre, bilinear."""
    height, width, _ = image.shape
    angle = degrees * (math.pi / 180)
    # From the centre. No matrix product: on a TPU it would round positions to bfloat16.
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
    x = jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2
    rows = jnp.cos(angle) * y + jnp.sin(angle) * x + (height - 1) / 2
    columns = jnp.cos(angle) * x - jnp.sin(angle) * y + (width - 1) / 2
    read = partial(map_coordinates, coordinates=(rows, columns), order=1)
    return jax.vmap(read, in_axes=-1, out_axes=-1)(image)


def scaling(
    key: Array,
    image: Array,
    *,
    low: Annotated[float, Range(above=0, high=1)] = 0.9,
    high: Annotated[float, Range(low=1)] = 1.1,
) -> Array:
    """About the centre, by a factor drawn evenly in its logarithm; above 1 enlarges."""
    exponent = jax.random.uniform(key, minval=math.log(low), maxval=math.log(high))
    return scale(image, jnp.exp(exponent))


def scale(image: Array, factor: Array) -> Array:
    """About the centre, bilinear; a factor above 1 enlarges."""
    centre = jnp.array(image.shape[:2], jnp.float32) / 2
    factors, translation = jnp.stack([factor, factor]), centre * (1 - factor)
    return jax.image.scale_and_translate(
        image, image.shape, (0, 1), factors, translation, 'linear', antialias=False
    )


def cutout(key: Array, image: Array, *, size: PositiveInt = 8) -> Array:
    """A black square of `size` pixels about a random pixel (DeVries and Taylor 2017, section 3)."""
    return cut_out(image, jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2])), size)


def cut_out(image: Array, centre: Array, size: int) -> Array:
    """A black square of `size` pixels about `centre` [2], as far as it lies in the image."""
    height, width, _ = image.shape
    top, left = centre[0] - size // 2, centre[1] - size // 2
    y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    inside = (y >= top) & (y < top + size) & (x >= left) & (x < left + size)
    return jnp.where(inside, 0, image)


def mixup(key: Array, batch: Batch, num_classes: int | None, *, alpha: Positive = 0.2) -> Batch:
    """Convex combinations of two examples and of their targets, which become probabilities [B, C].

    The share of the first is drawn from Beta(alpha, alpha) (Zhang et al. 2018, section 2). Pairs
    are by a permutation of the whole global batch.
    """
    share_key, partner_key = jax.random.split(key)
    size = len(batch['inputs'])
    shares = jax.random.beta(share_key, alpha, alpha, (size,))
    partners = jax.random.permutation(partner_key, size)

    def mix(rows: Array) -> Array:
        share = shares.reshape(-1, *(1,) * (rows.ndim - 1))
        return share * rows + (1 - share) * rows[partners]

    targets = batch['targets']
    if targets.ndim == 1 and num_classes:
        targets = jax.nn.one_hot(targets, num_classes)
    return {**batch, 'inputs': mix(batch['inputs']), 'targets': mix(targets.astype(jnp.float32))}


AUGMENTATIONS: Mapping[str, Callable] = {
    'crop': crop,
    'flip': flip,
    'rotation': rotation,
    'scaling': scaling,
    'cutout': cutout,
    'mixup': mixup,
}
