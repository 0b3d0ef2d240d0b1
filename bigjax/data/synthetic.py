"""Made-up rows, each a pure function of its index: for tests and benchmarks, of any size.

Every kind can be learned, and the best that can be reached is known: blobs are normal around the
centre of their class, regression targets around a linear function of the inputs; a token is the one
before it plus 1 or 2, so a model can reach ln 2 nats. Images resemble the picture of their class.

Shapes: B rows, F features, T tokens, H image size, C channels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import jax
import numpy as np

from bigjax.data.core import Batch, Dataset, DataSpec, Source, Transform
from bigjax.schema import NonNegative, NonNegativeInt, PositiveInt

MAX_WIDTH = 2**24
"""More random numbers than any row takes: those of row i have the counters from i * MAX_WIDTH."""


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
    pictures = random_bytes(config.seed, np.arange(config.classes), math.prod(shape))
    noise = random_bytes(config.seed + 1, indices, math.prod(shape))
    pixels = (pictures[classes] >> 1) + (noise >> 1)
    return {'inputs': pixels.reshape(-1, *shape), 'targets': classes.astype(np.int32)}


def tokens(config: Config, indices: np.ndarray) -> Batch:
    """int32 [B, T], and the same one token on."""
    bits = random_bits(config.seed, indices, config.sequence_length + 1)
    steps = 1 + (bits >> np.uint64(63)).astype(np.int64)
    steps[:, 0] = (bits[:, 0] % np.uint64(config.vocab_size)).astype(np.int64)
    stream = (np.cumsum(steps, axis=1) % config.vocab_size).astype(np.int32)
    return {'inputs': stream[:, :-1], 'targets': stream[:, 1:]}


_KINDS: dict[str, Callable[[Config, np.ndarray], Batch]] = {
    'blobs': blobs,
    'regression': regression,
    'images': images,
    'tokens': tokens,
}


def normal(seed: int, indices: np.ndarray, width: int) -> np.ndarray:
    """Standard normal [B, width] (Box and Muller 1958)."""
    half = -(-width // 2)
    uniform = (random_bits(seed, indices, 2 * half) >> np.uint64(11)) * 2.0**-53
    radius = np.sqrt(-2 * np.log1p(-uniform[:, :half]))
    angle = 2 * np.pi * uniform[:, half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :width]


def random_bytes(seed: int, indices: np.ndarray, width: int) -> np.ndarray:
    """uint8 [B, width]."""
    return random_bits(seed, indices, -(-width // 8)).view(np.uint8)[:, :width]


def random_bits(seed: int, indices: np.ndarray, width: int) -> np.ndarray:
    """uint64 [B, width]: SplitMix64 (Steele, Lea and Flood 2014) of seed, index and column."""
    stream = _mix(np.array([seed], np.uint64))
    counter = indices.astype(np.uint64)[:, None] * np.uint64(MAX_WIDTH) + np.arange(
        width, dtype=np.uint64
    )
    return _mix(_mix(counter) + stream)


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
