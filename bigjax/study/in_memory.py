"""Small classifiers trained in memory, many steps in one compiled loop: for experiments that look
inside training, where a run with a folder of its own would be in the way."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigjax import losses
from bigjax.config import DataConfig
from bigjax.data.load import load
from bigjax.errors import DataError
from bigjax.models import mlp
from bigjax.models.core import Model

FASHION_MNIST = Path('/usr/share/datasets/fashion-mnist')
DEBIAN = 'dataset-fashion-mnist'
"""Where Debian puts the files of that package."""


class Rows(NamedTuple):
    """inputs: float32 [N, F]; targets: class ids, int32 [N]."""

    inputs: Any
    targets: Any

    def first(self, count: int) -> 'Rows':
        """The first of them."""
        return Rows(self.inputs[:count], self.targets[:count])


def read_images(folder: Path | None, smoke: bool) -> tuple[Rows, Rows]:
    """Train and test of the IDX files in `folder`, pixels in [0, 1]; for a smoke test, of
    scikit-learn's digits, 1,200 and 597. Raises: DataError."""
    if smoke:
        digits = load(
            DataConfig('digits', splits={'train': 'train[:1200]', 'test': 'train[1200:]'})
        )
        return _rows(digits, 'train'), _rows(digits, 'test')
    if folder is None or not folder.is_dir():
        raise DataError(
            f'--data: expected a folder with the four IDX files of MNIST or its like, got {folder}'
            + f' (Debian: apt-get install {DEBIAN})' * (folder == FASHION_MNIST)
        )
    names = {'train': 'train', 'test': 'test'}
    splits = load(DataConfig('idx', splits=names, options={'path': str(folder)}))
    return _rows(splits, 'train'), _rows(splits, 'test')


def _rows(splits: Any, name: str) -> Rows:
    source = splits.sources[name]
    rows = source[np.arange(len(source))]
    inputs = rows['inputs'].reshape(len(source), -1)
    scale = 255 if inputs.dtype == np.uint8 else 1
    return Rows(np.float32(inputs) / np.float32(scale), np.int32(rows['targets']))


def perceptron(
    rows: Rows, widths: tuple[int, ...], activation: Any = 'relu', outputs: int = 10
) -> Model:
    """A multi-layer perceptron for such rows."""
    inputs = jax.ShapeDtypeStruct((1, rows.inputs.shape[1]), jnp.float32)
    return mlp.build(mlp.Config(widths, activation), inputs, outputs, jnp.float32)


def cross_entropy(model: Model) -> Callable[[Any, Rows], jax.Array]:
    """(params, rows) -> its mean, in nats."""

    def loss(params: Any, rows: Rows) -> jax.Array:
        logits = model.apply({'params': params}, rows.inputs, train=True)[0]
        return losses.softmax_cross_entropy(logits, rows.targets).mean()

    return loss


@partial(jax.jit, static_argnums=0)
def accuracy(model: Model, params: Any, rows: Rows) -> jax.Array:
    """The part of rows whose class the model tells."""
    logits = model.apply({'params': params}, rows.inputs, train=False)[0]
    return jnp.mean(logits.argmax(-1) == rows.targets)


@partial(jax.jit, static_argnums=(0, 1), static_argnames=('steps', 'batch_size'))
def train(
    loss: Callable[[Any, Rows], jax.Array],
    optimizer: optax.GradientTransformation,
    params: Any,
    state: Any,
    rows: Rows,
    key: jax.Array,
    *,
    steps: int,
    batch_size: int,
) -> tuple[Any, Any, jax.Array]:
    """Parameters and optimizer state after `steps` of batches drawn with replacement, and the loss
    before each, [steps]."""

    def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
        params, state = carry
        chosen = jax.random.randint(key, (batch_size,), 0, len(rows.targets))
        batch = Rows(rows.inputs[chosen], rows.targets[chosen])
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, state), values = jax.lax.scan(step, (params, state), jax.random.split(key, steps))
    return params, state, values
