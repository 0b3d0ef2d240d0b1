"""Convolutional network for small images: [B, H, W, C] -> [B, O].

The default is the common one for 28x28 digits: 3x3 convolutions of 32, 64 and 64 channels, 2x2
max-pooling after the first two, then a dense layer of 64.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.errors import ConfigError
from bigjax.models.core import Model, from_linen, require_rows
from bigjax.nn import initializers
from bigjax.nn.activations import ACTIVATIONS, Pointwise
from bigjax.nn.conv import Conv, max_pool
from bigjax.nn.dropout import Dropout
from bigjax.nn.linear import Dense, Hidden
from bigjax.nn.multipliers import STANDARD, Multipliers, times
from bigjax.nn.norms import make_norm
from bigjax.schema import NonNegativeInt, PositiveInt, Rate


@dataclass(frozen=True)
class Config:
    """Convolutions, then dense layers.

    pools: how many of the convolutions, from the first, 2x2 max-pooling follows.
    norm: of each convolution, before its activation.
    dropout: of what each dense layer, the read-out among them, reads.
    """

    channels: tuple[PositiveInt, ...] = (32, 64, 64)
    kernel: PositiveInt = 3
    pools: NonNegativeInt = 2
    dense: tuple[PositiveInt, ...] = (64,)
    activation: Pointwise = 'relu'
    norm: Literal['batch'] | None = None
    dropout: Rate = 0.0

    def __post_init__(self) -> None:
        if self.pools > len(self.channels):
            convolutions = f'{len(self.channels)} convolutions in channels'
            raise ValueError(f'pools={self.pools} is more than the {convolutions}')
        if self.kernel % 2 == 0:
            raise ValueError(f'kernel must be odd, to keep the image size; got {self.kernel}')


def build(
    config: Config,
    inputs: Any,
    outputs: int,
    dtype: Any,
    multipliers: Multipliers = STANDARD,
) -> Model:
    """Raises: ConfigError when the inputs are no images, or too small for the pooling."""
    require_rows('cnn', inputs, 3, 'images [H, W, C]')
    side = min(inputs.shape[1:3])
    if side < 2**config.pools:
        raise ConfigError(
            f'config.model.pools: {config.pools} poolings need images of at least'
            f' {2**config.pools} pixels a side, got {inputs.shape[1:3]}; use fewer'
        )
    return from_linen(CNN(config, outputs, dtype, multipliers), inputs)


class CNN(nn.Module):
    """As `Config` describes it; zero padding keeps the size of the image in each convolution."""

    config: Config
    outputs: int
    dtype: Any
    multipliers: Multipliers = STANDARD

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        config = self.config
        init = initializers.before(config.activation)
        conv = partial(
            Conv, kernel=config.kernel, use_bias=not config.norm, kernel_init=init, dtype=self.dtype
        )
        hidden = partial(Hidden, activation=config.activation, kernel_init=init, dtype=self.dtype)
        x, fan_in = times(inputs, self.multipliers.embedding), 'input'
        for i, channels in enumerate(config.channels):
            x = conv(channels, axes=(fan_in, 'mlp'), name=f'conv_{i}')(x)
            if config.norm:
                x = make_norm(config.norm, dtype=self.dtype, name=f'norm_{i}')(x, train)
            x = ACTIVATIONS[config.activation](x)
            if i < config.pools:
                x = max_pool(x, window=2, stride=2)
            fan_in = 'embed'
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(config.dense):
            x = Dropout(config.dropout)(x, train)
            x = hidden(width, axes=(fan_in, 'mlp'), name=f'dense_{i}')(x)
        x = times(Dropout(config.dropout)(x, train), self.multipliers.read_out)
        return Dense(self.outputs, ('embed', 'output'), dtype=jnp.float32, name='read_out')(x)
