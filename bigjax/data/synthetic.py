"""Made-up rows, each a pure function of its index: for tests and benchmarks, of any size.

Every kind can be learned, and the best that can be reached is known: blobs are normal around the
centre of their class, regression targets around a linear function of the inputs; a token is the one
before it plus 1 or 2, so a model can reach ln 2 nats. Images resemble the picture of their class.

Shapes: B rows, F features, T tokens, H image size, C channels.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import jax
import numpy as np

from bigjax.data.core import Batch, Dataset, DataSpec, Source, Transform
from bigjax.schema import NonNegative, NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class Config:
    """noise: standard deviation of blobs and regression; centres and inputs are standard normal."""

    kind: Literal['blobs', 'regression', 'images', 'tokens'] = 'blobs'
    examples: PositiveInt = 1000
    features: PositiveInt = 16
    classes: PositiveInt = 4
    noise: NonNegative = 0.5
    image_size: PositiveInt = 28
    channels: PositiveInt = 1
    sequence_length: PositiveInt = 64
    vocab_size: PositiveInt = 64
    seed: NonNegativeInt = 0


def load(config: Config) -> Dataset:
    """One split, train, of `examples` rows."""
    source = Synthetic(config)

    def prepare(train: Source) -> tuple[DataSpec, Transform]:
        row = source[np.array([0])]
        shapes = {key: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for key, x in row.items()}
        spec = DataSpec(shapes['inputs'], shapes['targets'])
        if config.kind == 'tokens':
            spec = replace(spec, vocab_size=config.vocab_size, tokens=config.sequence_length)
        if config.kind in ('blobs', 'images'):
            spec = replace(spec, num_classes=config.classes)
        if config.kind == 'images':
            spec = replace(spec, mean=(0.5,) * config.channels, std=(0.2,) * config.channels)
        return spec, lambda source: source

    return Dataset({'train': source}, prepare)


@dataclass(frozen=True)
class Synthetic:
    """Rows made when they are read."""

    config: Config

    def __len__(self) -> int:
        return self.config.examples

    def __getitem__(self, indices: np.ndarray) -> Batch:
        return _KINDS[self.config.kind](self.config, indices)


def blobs(config: Config, indices: np.ndarray) -> Batch:
    """float32 [B, F] around the centre of class `index % classes`."""
    classes = indices % config.classes
    centres = normal(config.seed, np.arange(config.classes), config.features)
    noise = normal(config.seed + 1, indices, config.features)
    inputs = centres[classes] + config.noise * noise
    return {'inputs': inputs.astype(np.float32), 'targets': classes.astype(np.int32)}


def regression(config: Config, indices: np.ndarray) -> Batch:
    """float32 [B, F]; targets float32 [B], of variance 1 + noise^2."""
    inputs = normal(config.seed, indices, config.features)
    weights = normal(config.seed + 1, np.array([0]), config.features)[0]
    noise = normal(config.seed + 2, indices, 1)[:, 0]
    targets = inputs @ (weights / np.linalg.norm(weights)) + config.noise * noise
    return {'inputs': inputs.astype(np.float32), 'targets': targets.astype(np.float32)}


def images(config: Config, indices: np.ndarray) -> Batch:
    """uint8 [B, H, H, C]: the mean of a picture of class `index % classes` and of random pixels."""
    shape = (config.image_size, config.image_size, config.channels)
    classes = indices % config.classes

    def pixels(rng: np.random.Generator) -> np.ndarray:
        return rng.integers(256, size=shape, dtype=np.uint8) >> 1

    pictures = drawn(config.seed, np.arange(config.classes), pixels)
    inputs = pictures[classes] + drawn(config.seed + 1, indices, pixels)
    return {'inputs': inputs, 'targets': classes.astype(np.int32)}


def tokens(config: Config, indices: np.ndarray) -> Batch:
    """int32 [B, T], and the same one token on."""
    width = config.sequence_length
    first = drawn(config.seed, indices, lambda rng: rng.integers(config.vocab_size, size=1))
    steps = drawn(config.seed + 1, indices, lambda rng: rng.integers(1, 3, size=width))
    steps = np.concatenate([first, steps], axis=1)
    stream = (np.cumsum(steps, axis=1) % config.vocab_size).astype(np.int32)
    return {'inputs': stream[:, :-1], 'targets': stream[:, 1:]}


_KINDS: dict[str, Callable[[Config, np.ndarray], Batch]] = {
    'blobs': blobs,
    'regression': regression,
    'images': images,
    'tokens': tokens,
}


def normal(seed: int, indices: np.ndarray, width: int) -> np.ndarray:
    """Standard normal [B, width]."""
    return drawn(seed, indices, lambda rng: rng.normal(size=width))


def drawn(
    seed: int, indices: np.ndarray, draw: Callable[[np.random.Generator], np.ndarray]
) -> np.ndarray:
    """What `draw` makes of a generator of each index's own: [B, ...]."""
    return np.stack([draw(np.random.default_rng((seed, index))) for index in indices])
