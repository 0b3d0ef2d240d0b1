"""Linear maps over the last axis, and embeddings.

Shapes: D fan-in, F fan-out, V vocabulary.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from bigjax.nn import initializers
from bigjax.nn.activations import ACTIVATIONS, Activation, is_gated
from bigjax.nn.initializers import Initializer
from bigjax.nn.params import param
from bigjax.sharding.rules import constrain, parts


def sum_in_float32(dtype: Any) -> lax.DotAlgorithmPreset | None:
    """The precision of products of 16-bit numbers, in the backward pass too; None for others.

    Of float16 GPUs alone know one. Elsewhere float32 gradients are multiplied in float32.
    """
    if dtype == jnp.bfloat16:
        return lax.DotAlgorithmPreset.BF16_BF16_F32
    if dtype == jnp.float16 and jax.default_backend() == 'gpu':
        return lax.DotAlgorithmPreset.F16_F16_F32
    return None


def matmul(x: jax.Array, kernel: jax.Array, result: Any = None) -> jax.Array:
    """x [..., D] by kernel [D, ...], of one dtype, as a product of two matrices; dtype `result`.

    With more than two axes XLA:CPU transposes activations to compute the kernel's gradient, which
    takes nearly half of a Transformer's step. But two axes that both lie split on the mesh cannot
    be made one.
    """
    is_split = x.ndim > 2 and parts('residual', x.shape[1]) > 1
    rows = jnp.matmul(
        x if is_split else x.reshape(-1, x.shape[-1]),
        kernel.reshape(kernel.shape[0], -1),
        precision=sum_in_float32(x.dtype) if result else None,
        preferred_element_type=result,
    )
    return rows.reshape(*x.shape[:-1], *kernel.shape[1:])


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y [..., F] and a float32 bias of its last axes: spread first, rounded then, so that the bias'
    gradient is summed in float32."""
    return y + jnp.broadcast_to(bias, y.shape).astype(y.dtype)


class Dense(nn.Module):
    """x W + b over the last axis: [..., D] -> [..., F].

    axes: the logical names of the kernel's two axes; the bias takes the second.
    result: the dtype of what comes out, where it is not the compute dtype.
    """

    features: int
    axes: tuple[str, str]
    use_bias: bool = True
    kernel_init: Initializer = initializers.lecun()
    dtype: Any = jnp.float32
    result: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.features)
        kernel = param(self, 'kernel', self.kernel_init, shape, self.axes, self.dtype)
        y = matmul(x.astype(self.dtype), kernel, self.result)
        if not self.use_bias:
            return y
        bias = param(self, 'bias', initializers.zeros, (self.features,), self.axes[1:])
        return add_bias(y, bias)


class Hidden(nn.Module):
    """A Dense layer and its activation: [..., D] -> [..., F].

    Gated activations take a second kernel of the same shape, act(x W_gate) * (x W) (Shazeer 2020,
    equations 5 and 6). Two kernels rather than one split in two: a split would cut across the
    shards of the fan-out.
    """

    features: int
    activation: Activation
    axes: tuple[str, str] = ('embed', 'mlp')
    use_bias: bool = True
    kernel_init: Initializer = initializers.lecun()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        options = (self.features, self.axes, self.use_bias, self.kernel_init, self.dtype)
        activate = ACTIVATIONS[self.activation]
        if is_gated(self.activation):
            return activate(Dense(*options, name='gate')(x)) * Dense(*options, name='dense')(x)
        return activate(Dense(*options, name='dense')(x))


class Embed(nn.Module):
    """A row of the table for each id: ids [...] -> [..., D]. One past its end gives NaN.

    `attend` multiplies by the table's transpose: a read-out that shares it (Press & Wolf 2017).
    """

    vocabulary: int
    features: int
    axes: tuple[str, str] = ('vocab', 'embed')
    embedding_init: Initializer = initializers.normal(0.02)
    dtype: Any = jnp.float32

    def setup(self) -> None:
        shape = (self.vocabulary, self.features)
        self.embedding = param(self, 'embedding', self.embedding_init, shape, self.axes)

    def __call__(self, ids: jax.Array) -> jax.Array:
        # Whole on every device: XLA does not partition a gather from a table split by its rows.
        table = constrain(self.embedding, (None, None))
        return jnp.take(table, ids, axis=0, mode='fill').astype(self.dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., V], in float32 whatever the compute dtype."""
        return matmul(x.astype(self.dtype), self.embedding.astype(self.dtype).T, jnp.float32)
