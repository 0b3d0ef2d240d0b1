"""The models that the scripts measure, and their bare jitted step."""

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigjax import config as configs
from bigjax.config import Config
from bigjax.data import batches
from bigjax.sharding.mesh import process_rows, replicated
from bigjax.train.build import Run, build
from bigjax.train.step import train_step

NEVER = 10**9

CASES: dict[str, dict[str, Any]] = {
    'MLP 128-64, 30 features, batch 32': {
        'model': {'name': 'mlp', 'widths': (128, 64)},
        'data': {'name': 'breast_cancer'},
        'train': {'batch_size': 32},
    },
    'CNN 32-64-128, 28x28, batch 128': {
        'model': {'name': 'cnn', 'channels': (32, 64, 128), 'pools': 3, 'dense': (128,)},
        'data': {'name': 'npz'},  # its path is that of `images`
        'train': {'batch_size': 128},
    },
    'Transformer 4 x 128, T 64, batch 12': {  # nanoGPT's, on a CPU
        'model': {'name': 'transformer', 'layers': 4, 'width': 128, 'heads': 4, 'bias': False},
        'task': 'language_model',
        'data': {'name': 'text', 'tokenizer': 'characters', 'sequence_length': 64},
        'train': {'batch_size': 12},
    },
}


@cache
def images() -> str:
    """A file of 8,192 random images and their classes, as uint8 and int32."""
    rng = np.random.default_rng(0)
    path = Path(tempfile.mkdtemp()) / 'images.npz'
    pixels = rng.integers(256, size=(8192, 28, 28, 1)).astype(np.uint8)
    np.savez(path, inputs=pixels, targets=rng.integers(10, size=8192).astype(np.int32))
    return str(path)


@cache
def text() -> str:
    """A file of random text in 65 characters, as many as in Tiny Shakespeare."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(bytes(range(58, 122)) + b' ', np.uint8)
    path = Path(tempfile.mkdtemp()) / 'text.txt'
    path.write_bytes(rng.choice(letters, 100_000).tobytes())
    return str(path)


FILES = {'npz': images, 'text': text}


def case(name: str, steps: int, log_every: int) -> Config:
    """A run of that many steps without evaluation or checkpoints on the way."""
    chosen = CASES[name]
    kind = chosen['data']['name']
    data = chosen['data'] | ({'path': FILES[kind]()} if kind in FILES else {})
    devices = jax.device_count()
    size = -(-chosen['train']['batch_size'] // devices) * devices
    train = {'batch_size': size, 'steps': steps, 'log_every': log_every}
    return configs.resolve(
        {
            'task': 'classification',
            **chosen,
            'data': data,
            'train': train,
            'optimizer': {'name': 'adamw', 'learning_rate': 1e-4},
            'eval': {'every': NEVER},
            'checkpoint': {'every': NEVER},
        }
    )


def prepared(run: Run) -> tuple[jax.stages.Compiled, Callable[[], tuple[Any, Any]]]:
    """The compiled step, and a function that dispatches it on one batch that already lies on the
    devices: it returns the state and what is logged. Call it under the run's mesh."""
    step = jax.jit(
        partial(train_step, run.recipe),
        donate_argnums=0,
        out_shardings=(run.shardings, replicated(run.mesh)),
    )
    size, sharding = run.config.train.batch_size, run.batch_sharding
    source = run.splits.sources['train']
    rows = process_rows(sharding, size)
    batch = batches.to_device(batches.train_batch(source, 0, 0, size, rows), sharding, size)
    state = run.init()
    with jax.set_mesh(run.mesh):
        compiled = step.lower(state, batch).compile()

    def dispatch() -> tuple[Any, Any]:
        nonlocal state
        state, logged = step(state, batch)
        return state, logged

    return compiled, dispatch


def bare_steps(run: Run, count: int) -> Callable[[], None]:
    """A function that takes `count` steps on one batch."""
    _, dispatch = prepared(run)

    def steps() -> None:
        with jax.set_mesh(run.mesh):
            for _ in range(count):
                latest = dispatch()
            jax.block_until_ready(latest)

    steps()
    return steps


def built(name: str) -> Run:
    """That case on the devices there are."""
    return build(case(name, steps=1, log_every=1))
