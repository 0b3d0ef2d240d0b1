"""The Vision Transformer (Dosovitskiy et al. 2020). The default is ViT-S/16 (Touvron et al. 2021).

Shapes: B batch, H, W image height and width, C channels, P patch side, T patches, D width, O
outputs.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.errors import ConfigError
from bigjax.models.core import Model, from_linen, require_rows
from bigjax.nn import blocks
from bigjax.nn.blocks import KERNEL_INIT, Sight, run_blocks
from bigjax.nn.dropout import Dropout
from bigjax.nn.linear import Dense
from bigjax.nn.multipliers import STANDARD, Multipliers, times
from bigjax.nn.params import param
from bigjax.schema import Positive, PositiveInt


@dataclass(frozen=True)
class Config(blocks.Config):
    """A bidirectional stack of blocks over an image's patches.

    patch: side of a patch, which must divide the image's sides.
    pool: the read-out sees a class 'token' that goes through the blocks, or the 'mean' of the
    patches. ViT-B/16 has width 768 and 12 heads.
    """

    layers: PositiveInt = 12
    width: PositiveInt = 384
    heads: PositiveInt = 6
    norm_epsilon: Positive = 1e-6
    patch: PositiveInt = 16
    pool: Literal['token', 'mean'] = 'token'


def build(
    config: Config,
    inputs: Any,
    outputs: int,
    dtype: Any,
    multipliers: Multipliers = STANDARD,
) -> Model:
    """Outputs are float32 [B, O].

    Raises: ConfigError when the inputs are no images, or patches do not tile them.
    """
    require_rows('vit', inputs, 3, 'images [H, W, C]')
    _, height, width, _ = inputs.shape
    if height % config.patch or width % config.patch:
        raise ConfigError(
            f'config.model.patch: expected a divisor of the image sides {height} and {width},'
            f' got {config.patch}'
        )
    patches = height * width // config.patch**2
    model = from_linen(ViT(config, outputs, dtype, multipliers), inputs)
    return replace(model, sequence=patches + (config.pool == 'token'))


class ViT(nn.Module):
    """As `Config` describes it."""

    config: Config
    outputs: int
    dtype: Any
    multipliers: Multipliers = STANDARD

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        config = self.config
        dense = partial(Dense, kernel_init=KERNEL_INIT)
        x = in_patches(inputs, config.patch)
        x = dense(config.width, ('input', 'embed'), dtype=self.dtype, name='embed')(x)
        if config.pool == 'token':
            token = param(self, 'token', KERNEL_INIT, (config.width,), ('embed',))
            tokens = jnp.broadcast_to(token[None, None], (x.shape[0], 1, config.width))
            x = jnp.concatenate([tokens, x], axis=1)
        positions = param(self, 'positions', KERNEL_INIT, x.shape[1:], ('position', 'embed'))
        x = Dropout(config.dropout)(times(x + positions[None], self.multipliers.embedding), train)
        options = {'train': train, 'dtype': self.dtype, 'multipliers': self.multipliers}
        x = run_blocks(x, None, None, config, Sight(), **options)
        x = x.astype(jnp.float32)
        x = times(x[:, 0] if config.pool == 'token' else x.mean(1), self.multipliers.read_out)
        return dense(self.outputs, ('embed', 'output'), name='read_out')(x)


def in_patches(images: jax.Array, side: int) -> jax.Array:
    """[B, H, W, C] -> [B, T, P P C], row by row."""
    batch, height, width, channels = images.shape
    tiles = images.reshape(batch, height // side, side, width // side, side, channels)
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, side * side * channels)
