"""Convolution and pooling of images.

Shapes: B batch, H height, W width, C channels in, F channels out, K kernel size.
"""

from functools import reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from bigjax.nn import initializers
from bigjax.nn.initializers import Initializer
from bigjax.nn.linear import add_bias
from bigjax.nn.params import param


class Conv(nn.Module):
    """Convolution with a square kernel [K, K, C, F]: [B, H, W, C] -> [B, H', W', F].

    padding: zeros on each of the four sides; None stands for (K - 1) // 2, with which an odd kernel
        at stride 1 keeps the size, and at stride 2 halves it as in He et al. 2015 (the 'SAME' of
        XLA would pad the far sides only).
    axes: the logical names of C and F; the bias takes the second.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    padding: int | None = None
    axes: tuple[str, str] = ('embed', 'mlp')
    use_bias: bool = True
    kernel_init: Initializer = initializers.he()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        axes = ('kernel_height', 'kernel_width', *self.axes)
        kernel = param(self, 'kernel', self.kernel_init, shape, axes, self.dtype)
        side = (self.kernel - 1) // 2 if self.padding is None else self.padding
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel,
            window_strides=(self.stride, self.stride),
            padding=[(side, side), (side, side)],
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )
        if not self.use_bias:
            return y
        width = (self.features,)
        bias = param(self, 'bias', initializers.zeros, width, self.axes[1:])
        return add_bias(y, bias)


def max_pool(x: jax.Array, window: int, stride: int, padding: int = 0) -> jax.Array:
    """The largest value in each square window: [B, H, W, C] -> [B, H', W', C].

    Rows and columns that fill no window are left out. It is a maximum of strided slices because the
    gradient of `lax.reduce_window` takes ten times as long on a CPU; equal values share it.
    """
    sides = (padding, padding)
    x = jnp.pad(x, ((0, 0), sides, sides, (0, 0)), constant_values=-jnp.inf)
    for axis in (1, 2):
        last = (x.shape[axis] - window) // stride * stride
        slices = [lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(window)]
        x = reduce(jnp.maximum, slices)
    return x


def mean_pool(x: jax.Array) -> jax.Array:
    """The mean over all positions, in float32: [B, H, W, C] -> [B, C]."""
    return x.astype(jnp.float32).mean((1, 2))
