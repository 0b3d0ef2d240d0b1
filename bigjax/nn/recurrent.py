"""Recurrent layers, scanned over time. All gates of a step come from one matrix product.

In both cells the contribution of the inputs, z = x W + b, is computed for all steps at once, ahead
of the scan; a step adds h U. The columns of W, b and U are the gates in the order named below. The
state is float32 whatever the compute dtype.

Shapes: B batch, T sequence, D input width, F width of the state, G gates.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from bigjax.nn import initializers
from bigjax.nn.linear import Dense
from bigjax.nn.params import param

Cell = Literal['lstm', 'gru']
"""For the fields of configs."""


def lstm(state: tuple[jax.Array, jax.Array], z: jax.Array, u: jax.Array) -> tuple:
    """One step of an LSTM (Hochreiter & Schmidhuber 1997; forget gate of Gers et al. 2000).

    Gates i, f, g, o of z + h U:
        c' = sigmoid(f + 1) c + sigmoid(i) tanh(g),    h' = sigmoid(o) tanh(c')
    where the 1 keeps memory open at the start (Jozefowicz et al. 2015, section 2.2).
    """
    h, c = state
    i, f, g, o = jnp.split(z + h.astype(u.dtype) @ u, 4, axis=-1)
    c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru(state: tuple[jax.Array], z: jax.Array, u: jax.Array) -> tuple:
    """One step of a GRU (Cho et al. 2014), with the reset gate after the product as in cuDNN.

    Gates r, s, n, where [r, s] of z + h U, and n of z and h U apart:
        n' = tanh(n_z + sigmoid(r) n_hU),    h' = (1 - sigmoid(s)) n' + sigmoid(s) h
    """
    (h,) = state
    z_rs, z_n = jnp.split(z, [2 * h.shape[-1]], axis=-1)
    u_rs, u_n = jnp.split(h.astype(u.dtype) @ u, [2 * h.shape[-1]], axis=-1)
    r, s = jnp.split(jax.nn.sigmoid(z_rs + u_rs), 2, axis=-1)
    n = jnp.tanh(z_n + r * u_n)
    return ((1 - s) * n + s * h,)


CELLS: dict[str, tuple[Callable, int, int]] = {'lstm': (lstm, 4, 2), 'gru': (gru, 3, 1)}
"""Step, number of gates, number of arrays in the state, of which h is the first."""


class Recurrent(nn.Module):
    """One direction of one layer: [B, T, D] -> h of each step [B, T, F] and of the last one [B, F].

    reverse: run from the last step to the first; outputs stay in the order of the inputs.
    mask: [B, T], False for padding, where the state stays as it is.
    """

    cell: Cell
    features: int
    reverse: bool = False
    axes: tuple[str, str] = ('embed', 'mlp')
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        step, gates, arrays = CELLS[self.cell]
        width = gates * self.features
        z = Dense(width, self.axes, dtype=self.dtype, name='input')(x)
        shape, axes = (self.features, width), ('embed', 'mlp')
        u = param(self, 'kernel', initializers.orthogonal(), shape, axes, self.dtype)

        def masked_step(state: tuple, inputs: tuple) -> tuple[tuple, jax.Array]:
            z, valid = inputs
            new = step(state, z, u)
            if valid is not None:
                new = jax.tree.map(partial(jnp.where, valid[:, None]), new, state)
            return new, new[0].astype(self.dtype)

        start = (jnp.zeros((x.shape[0], self.features), jnp.float32),) * arrays
        time_first = jax.tree.map(lambda a: a.swapaxes(0, 1), (z, mask))
        state, h = lax.scan(masked_step, start, time_first, reverse=self.reverse)
        return h.swapaxes(0, 1), state[0].astype(self.dtype)
