"""Text from a language model, by applying it to a window that slides over what it has written."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.data.core import Batch
from bigjax.models.core import Model

NUM_TEXTS = 3
TEMPERATURE = 0.8


def continuations(
    model: Model, variables: Any, rows: Batch, decode: Callable[[np.ndarray], str] | None
) -> list[dict[str, Any]]:
    """The first halves of a few rows as prompts, and what the model makes of them."""
    prompts = np.asarray(rows['inputs'][:NUM_TEXTS])
    half = max(1, prompts.shape[1] // 2)
    written = np.asarray(
        sample(model, variables, prompts[:, :half], prompts.shape[1], jax.random.key(0))
    )
    show = decode or (lambda ids: ' '.join(map(str, ids)))
    return [
        {'input': {'kind': 'text', 'text': show(prompt[:half])}, 'prediction': show(new)}
        for prompt, new in zip(prompts, written, strict=True)
    ]


@partial(jax.jit, static_argnums=(0, 3))
def sample(
    model: Model, variables: Any, prompts: jax.Array, length: int, rng: jax.Array
) -> jax.Array:
    """`length` new tokens [B, length] after prompts [B, P], drawn at TEMPERATURE."""
    size, start = prompts.shape[0], prompts.shape[1]
    window = start + length
    tokens = jnp.zeros((size, window), prompts.dtype).at[:, :start].set(prompts)

    def write(position: jax.Array, tokens: jax.Array) -> jax.Array:
        logits, _ = model.apply(variables, tokens, train=False)
        last = jax.lax.dynamic_index_in_dim(logits, position - 1, axis=1, keepdims=False)
        drawn = jax.random.categorical(jax.random.fold_in(rng, position), last / TEMPERATURE)
        return jax.lax.dynamic_update_index_in_dim(
            tokens, drawn.astype(tokens.dtype), position, axis=1
        )

    return jax.lax.fori_loop(start, window, write, tokens)[:, start:]
