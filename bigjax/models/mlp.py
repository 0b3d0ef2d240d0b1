"""Multi-layer perceptron over flattened rows: any shape [B, ...] -> [B, O]."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.errors import ConfigError
from bigjax.models.core import Model, from_linen
from bigjax.nn import initializers
from bigjax.nn.activations import Activation
from bigjax.nn.dropout import Dropout
from bigjax.nn.linear import Dense, Hidden
from bigjax.nn.multipliers import STANDARD, Multipliers, times
from bigjax.nn.norms import make_norm
from bigjax.schema import PositiveInt, Rate


@dataclass(frozen=True)
class Config:
    """Hidden layers of these widths. `norm` is of what a hidden layer puts out, before dropout."""

    widths: tuple[PositiveInt, ...] = (128, 64)
    activation: Activation = 'relu'
    norm: Literal['batch', 'layer'] | None = None
    dropout: Rate = 0.0


def build(
    config: Config,
    inputs: Any,
    outputs: int,
    dtype: Any,
    multipliers: Multipliers = STANDARD,
) -> Model:
    """Raises: ConfigError when the inputs are several arrays."""
    if not isinstance(inputs, jax.ShapeDtypeStruct):
        shapes = jax.tree.map(lambda array: array.shape[1:], inputs)
        raise ConfigError(f'config.model.name: mlp expects one array a row, got {shapes}')
    return from_linen(MLP(config, outputs, dtype, multipliers), inputs)


class MLP(nn.Module):
    """As `Config` describes it; the first kernel reads features, which do not grow with width."""

    config: Config
    outputs: int
    dtype: Any
    multipliers: Multipliers = STANDARD

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        config = self.config
        init = initializers.before(config.activation)
        hidden = partial(Hidden, activation=config.activation, kernel_init=init, dtype=self.dtype)
        x, fan_in = inputs.reshape(inputs.shape[0], -1), 'input'
        x = times(x, self.multipliers.embedding)
        for i, width in enumerate(config.widths):
            x = hidden(width, axes=(fan_in, 'mlp'), name=f'hidden_{i}')(x)
            if config.norm:
                x = make_norm(config.norm, dtype=self.dtype, name=f'norm_{i}')(x, train)
            x = Dropout(config.dropout)(x, train)
            fan_in = 'embed'
        x = times(x, self.multipliers.read_out)
        return Dense(self.outputs, (fan_in, 'output'), dtype=jnp.float32, name='read_out')(x)
