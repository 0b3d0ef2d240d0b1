"""Residual networks (He et al. 2015, 'Deep residual learning'): images [B, H, W, C] -> [B, O].

Version 1: a norm and a ReLU after each convolution, the last ReLU after the sum. Where the shape
changes, a 1x1 convolution and a norm make the shortcut (option B). The bottleneck of depth 50
strides in its 3x3 convolution rather than in its first 1x1 (known as v1.5; same parameters).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.models.core import Model, from_linen, require_rows
from bigjax.nn import initializers
from bigjax.nn.conv import Conv, max_pool, mean_pool
from bigjax.nn.dropout import StochasticDepth
from bigjax.nn.linear import Dense
from bigjax.nn.multipliers import STANDARD, Multipliers, times
from bigjax.nn.norms import make_norm
from bigjax.schema import PositiveInt, Rate

Branch = tuple[tuple[int, int, int], ...]
"""The convolutions of a residual branch: channels, kernel, stride."""


def _basic(width: int, stride: int) -> Branch:
    return (width, 3, stride), (width, 3, 1)


def _bottleneck(width: int, stride: int) -> Branch:
    return (width, 1, 1), (width, 3, stride), (4 * width, 1, 1)


DEPTHS: dict[int, tuple[Callable[[int, int], Branch], tuple[int, ...]]] = {
    18: (_basic, (2, 2, 2, 2)),
    34: (_basic, (3, 4, 6, 3)),
    50: (_bottleneck, (3, 4, 6, 3)),
}
"""The branch, and how many of them each of the four stages has (table 1)."""


@dataclass(frozen=True)
class Config:
    """Depth, width and what differs between the common recipes.

    width: channels of the first stage; each stage doubles it.
    stem: 'imagenet', a 7x7 convolution and a max-pooling, each of stride 2; or 'cifar', one 3x3
        convolution of stride 1, for images of about 32 pixels.
    groups: of group norm, which must divide the channels.
    zero_init: the scale of a block's last norm starts at 0, so that a block starts as the identity
        (Goyal et al. 2017, section 5.1).
    stochastic_depth: probability of dropping the last block; it grows linearly from the first
        (Huang et al. 2016, equation 4).
    """

    depth: Literal[18, 34, 50] = 18
    width: PositiveInt = 64
    stem: Literal['imagenet', 'cifar'] = 'imagenet'
    norm: Literal['batch', 'group'] = 'batch'
    groups: PositiveInt = 32
    zero_init: bool = True
    stochastic_depth: Rate = 0.0

    @property
    def residual_blocks(self) -> int:
        return sum(DEPTHS[self.depth][1])


def build(
    config: Config,
    inputs: Any,
    outputs: int,
    dtype: Any,
    multipliers: Multipliers = STANDARD,
) -> Model:
    """Raises: ConfigError when the inputs are no images, or the groups do not divide the width."""
    require_rows('resnet', inputs, 3, 'images [H, W, C]')
    return from_linen(ResNet(config, outputs, dtype, multipliers), inputs)


class ResNet(nn.Module):
    """Stem, four stages of blocks, mean over positions, read-out."""

    config: Config
    outputs: int
    dtype: Any
    multipliers: Multipliers = STANDARD

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        config = self.config
        conv = partial(Conv, use_bias=False, kernel_init=initializers.he(), dtype=self.dtype)
        groups = {'groups': config.groups} if config.norm == 'group' else {}
        norm = partial(make_norm, config.norm, dtype=self.dtype, **groups)
        branch, stages = DEPTHS[config.depth]

        kernel, stride = (7, 2) if config.stem == 'imagenet' else (3, 1)
        x = conv(config.width, kernel, stride, axes=('input', 'mlp'), name='stem')(
            times(inputs, self.multipliers.embedding)
        )
        x = jax.nn.relu(norm(name='stem_norm')(x, train))
        if config.stem == 'imagenet':
            x = max_pool(x, window=3, stride=2, padding=1)

        last_scale = initializers.zeros if config.zero_init else initializers.ones
        blocks = [(stage, i) for stage, count in enumerate(stages) for i in range(count)]
        for number, (stage, i) in enumerate(blocks, 1):
            layers = branch(config.width * 2**stage, 2 if stage > 0 and i == 0 else 1)
            drop = config.stochastic_depth * number / len(blocks)
            name = f'stage_{stage}_block_{i}'
            block = Block(layers, drop, last_scale, conv, norm, self.multipliers.branch, name=name)
            x = block(x, train)
        x = times(mean_pool(x), self.multipliers.read_out)
        return Dense(self.outputs, ('embed', 'output'), dtype=jnp.float32, name='read_out')(x)


class Block(nn.Module):
    """relu(multiplier * branch(x) + shortcut(x)), where `conv` and `norm` make layers."""

    branch: Branch
    drop: float
    last_scale: initializers.Initializer
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    multiplier: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y, shortcut, last = x, x, len(self.branch) - 1
        for i, (channels, kernel, stride) in enumerate(self.branch):
            y = self.conv(channels, kernel, stride, name=f'conv_{i}')(y)
            scale_init = self.last_scale if i == last else initializers.ones
            y = self.norm(scale_init=scale_init, name=f'norm_{i}')(y, train)
            y = y if i == last else jax.nn.relu(y)
        if x.shape != y.shape:
            strides = math.prod(stride for _, _, stride in self.branch)
            shortcut = self.conv(y.shape[-1], 1, strides, name='shortcut')(x)
            shortcut = self.norm(name='shortcut_norm')(shortcut, train)
        y = times(StochasticDepth(self.drop)(y, train), self.multiplier)
        return jax.nn.relu(shortcut + y)
