"""Positions as vectors to add, and as rotations.

Shapes: B batch, T sequence, D width, H heads, C head size.
"""

import jax
import jax.numpy as jnp
import numpy as np


def sinusoidal(positions: jax.Array, width: int, base: float = 10_000.0) -> jax.Array:
    """Fixed vectors of even `width` for positions [...]: [..., D], float32 (Vaswani et al. 2017,
    3.5).

    Sines fill the first half and cosines the second; the paper interleaves them, which is a fixed
    permutation of the channels.
    """
    angles = _angles(positions, width, base)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotate(x: jax.Array, positions: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Rotary embedding of x [B, T, H, C], C even, at positions [B, T] or [T] (Su et al. 2021,
    3.2.2).

    Products of rotated queries and keys depend on the difference of their positions only. Channel c
    is paired with c + C/2, as in Llama's checkpoints, where the paper pairs neighbours.
    """
    angles = _angles(positions, x.shape[-1], base)[..., None, :]  # one axis for the heads
    angles = jax.lax.broadcast_to_rank(angles, x.ndim)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def _angles(positions: jax.Array, channels: int, base: float) -> jax.Array:
    """Positions [...] times C/2 frequencies from 1 down to nearly 1/base: [..., C/2], float32."""
    frequencies = base ** -(np.arange(0, channels, 2, dtype=np.float32) / channels)
    return positions[..., None].astype(jnp.float32) * frequencies.reshape(
        (1,) * positions.ndim + (-1,)
    )
