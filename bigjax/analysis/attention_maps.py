"""The attention weights of every layer and head, whatever hides what from a head.

A head's output is a mixture of values, so its output on one-hot values is its weights: the layers
are asked for that, and no rule of theirs (causality, windows, segments, soft caps) is told twice.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.module import InterceptorContext

from bigjax.errors import ConfigError
from bigjax.models.core import Model, Variables
from bigjax.nn.attention import Attention


def attention_maps(model: Model, variables: Variables, inputs: Any) -> dict[str, jax.Array]:
    """Weights [B, H, T, S] of query t for key s, by the path of the layer, without dropout.

    Rows sum to 1; to 0 where a query sees no key.

    Raises: ConfigError for models without attention layers of ours, or whose layers are compiled
    out of sight.
    """

    def run(variables: Variables, inputs: Any) -> dict[str, jax.Array]:
        maps: dict[str, jax.Array] = {}

        def watch(call: Any, args: Any, kwargs: Any, context: InterceptorContext) -> Any:
            if isinstance(context.module, Attention) and context.method_name == '_attend':
                maps['/'.join(context.module.path)] = _weights(call, *args, **kwargs)
            return call(*args, **kwargs)

        with nn.intercept_methods(watch):
            model.apply(variables, inputs, train=False)
        return maps

    try:
        maps = jax.jit(run)(variables, inputs)
    except jax.errors.UnexpectedTracerError:
        raise ConfigError(
            'attention maps: expected layers that are not scanned or rematerialised; build the '
            "model with scan=False and remat='none' (`unstacked` makes its parameters of stacked "
            'ones)'
        ) from None
    if not maps:
        raise ConfigError('attention maps: expected a model with attention layers, got none')
    return maps


def unstacked(params: Any, stack: str = 'blocks', single: str = 'block_{}') -> Any:
    """Parameters of scanned layers, 'blocks' with a first axis of layers, as 'block_0', ...

    Raises: ConfigError where there is no such stack.
    """
    if stack not in params:
        raise ConfigError(f'expected stacked parameters {stack!r}, got ' + ', '.join(params))
    rest = {name: leaf for name, leaf in params.items() if name != stack}
    layers = jax.tree.leaves(params[stack])[0].shape[0]
    return rest | {
        single.format(layer): jax.tree.map(lambda leaf, at=layer: leaf[at], params[stack])
        for layer in range(layers)
    }


def _weights(
    attend: Any, query: jax.Array, key: jax.Array, value: jax.Array, segments: Any, train: bool
) -> jax.Array:
    """By as many key positions at once as a head has channels."""
    length, size = key.shape[1], value.shape[-1]
    columns = []
    for start in range(0, length, size):
        one_hot = jnp.eye(length, dtype=value.dtype)[:, start : start + size]
        width = one_hot.shape[1]
        one_hot = jnp.pad(one_hot, ((0, 0), (0, size - width)))
        values = jnp.broadcast_to(one_hot[None, :, None], value.shape)
        columns.append(attend(query, key, values, segments, train)[..., :width])
    return jnp.concatenate(columns, -1).transpose(0, 2, 1, 3)
