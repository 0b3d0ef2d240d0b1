"""Positions as vectors to add, and as rotations.

Shapes: B batch, T sequence, D width, H heads, C head size.
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.schema import Positive, PositiveInt


@dataclass(frozen=True)
class Scaling:
    """How rotary frequencies are slowed down for longer sequences than those of pretraining.

    linear: all by `factor` (Chen et al. 2023, section 3.2).
    llama3: those of wavelengths above original_length / low by `factor`, those below
        original_length / high not, the rest in between (as Llama 3.1 was trained).
    """

    kind: Literal['linear', 'llama3'] = 'linear'
    factor: Positive = 1.0
    low: Positive = 1.0
    high: Positive = 4.0
    original_length: PositiveInt = 8192

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f'low={self.low} must be below high={self.high}')


@dataclass(frozen=True)
class Frequencies:
    """Angles a position of rotary embedding: base^(-2i / C), scaled."""

    base: float = 10_000.0
    scaling: Scaling | None = None

    def of(self, channels: int) -> np.ndarray:
        """Float32 [C / 2], falling from 1."""
        plain = _frequencies(channels, self.base)
        if self.scaling is None:
            return plain
        if self.scaling.kind == 'linear':
            return plain / np.float32(self.scaling.factor)
        turns = self.scaling.original_length * plain / (2 * math.pi)
        share = (turns - self.scaling.low) / (self.scaling.high - self.scaling.low)
        share = np.clip(share, 0, 1).astype(np.float32)
        return share * plain + (1 - share) * plain / np.float32(self.scaling.factor)


def sinusoidal(positions: jax.Array, width: int, base: float = 10_000.0) -> jax.Array:
    """Fixed vectors of even `width` for positions [...]: [..., D], float32 (Vaswani et al. 2017,
    3.5).

    Sines fill the first half and cosines the second; the paper interleaves them, which is a fixed
    permutation of the channels.
    """
    angles = _angles(positions, _frequencies(width, base))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotate(
    x: jax.Array, positions: jax.Array, frequencies: Frequencies = Frequencies()
) -> jax.Array:
    """Rotary embedding of x [B, T, H, C], C even, at positions [B, T] or [T] (Su et al. 2021,
    3.2.2).

    Products of rotated queries and keys depend on the difference of their positions only. Channel c
    is paired with c + C/2, as in Llama's checkpoints, where the paper pairs neighbours.
    """
    angles = _angles(positions, frequencies.of(x.shape[-1]))[..., None, :]  # an axis for the heads
    angles = jax.lax.broadcast_to_rank(angles, x.ndim)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def _frequencies(channels: int, base: float) -> np.ndarray:
    """From 1 down to nearly 1 / base: float32 [C / 2]."""
    return base ** -(np.arange(0, channels, 2, dtype=np.float32) / channels)


def _angles(positions: jax.Array, frequencies: np.ndarray) -> jax.Array:
    """Positions [...] times frequencies [C / 2]: [..., C / 2], float32."""
    shape = (1,) * positions.ndim + (-1,)
    return positions[..., None].astype(jnp.float32) * frequencies.reshape(shape)
