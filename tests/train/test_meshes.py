"""The same losses on every mesh, and parameters that are really split."""

import math
import re
from functools import cache, partial

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from bigjax import trees
from bigjax.data import batches
from bigjax.errors import ConfigError
from bigjax.sharding.mesh import replicated
from bigjax.train.build import Run, batch_spec, build
from bigjax.train.step import train_step
from tests.train.tiny import blobs, documents, images, sentences, tiny_config

MESHES = {'1x1x1': None, '8x1x1': (8, 1, 1), '1x8x1': (1, 8, 1), '2x2x2': (2, 2, 2)}
LM = {'task': {'name': 'language_model'}}

MODELS = {
    'mlp': (blobs, {'name': 'mlp', 'widths': (16, 32), 'norm': 'layer'}, {}),
    'cnn': (
        images,
        {'name': 'cnn', 'channels': (8, 16), 'pools': 1, 'dense': (16,), 'norm': 'batch'},
        {},
    ),
    'resnet': (images, {'name': 'resnet', 'depth': 18, 'stem': 'cifar', 'width': 8}, {}),
    'lstm': (
        sentences,
        {'name': 'rnn', 'cell': 'lstm', 'width': 16, 'vocab_size': 16, 'head': 'all'},
        LM,
    ),
    'decoder': (
        sentences,
        {'name': 'transformer', 'layers': 2, 'width': 16, 'heads': 4, 'mlp': 32},
        LM,
    ),
    'vit': (images, {'name': 'vit', 'layers': 1, 'width': 16, 'heads': 2, 'patch': 4}, {}),
}


def losses(run: Run, splits, steps: int = 3) -> tuple[list[float], Run]:
    """The losses of the first steps, all on the run's mesh."""
    step = jax.jit(
        partial(train_step, run.recipe),
        donate_argnums=0,
        out_shardings=(run.shardings, replicated(run.mesh)),
        compiler_options={'xla_backend_optimization_level': 0},  # to compile, not to run
    )
    found = []
    with jax.set_mesh(run.mesh):
        state = run.init()
        for index in range(steps):
            batch = batches.train_batch(splits.sources['train'], 0, index, 16, slice(0, 16))
            state, logged = step(state, batches.to_device(batch, run.batch_sharding, 16))
            found.append(float(logged['loss']))
    return found, state


def one_device(monkeypatch):
    first = jax.devices()[:1]
    monkeypatch.setattr('bigjax.sharding.mesh.jax.devices', lambda: first)


SLOW = ('resnet',)  # a minute of compiling a mesh


@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS],
)
def test_every_mesh_gives_the_same_losses(name, monkeypatch):
    make, model, values = MODELS[name]
    splits = make()
    found = {}
    for mesh, sizes in MESHES.items():
        with monkeypatch.context() as patch:
            config = tiny_config(model=model, **values)
            if sizes is None:
                one_device(patch)
            else:
                axes = dict(zip(('data', 'fsdp', 'tensor'), sizes, strict=True))
                config = tiny_config(model=model, mesh=axes, **values)
            run = build(config, splits)
            assert run.mesh.size == (1 if sizes is None else 8)
            found[mesh], state = losses(run, splits)
        if mesh != '1x1x1':
            assert_split(run, state, mesh)
    for mesh in MESHES:
        np.testing.assert_allclose(found[mesh], found['1x1x1'], rtol=2e-5, err_msg=mesh)
    assert found['1x1x1'][0] != found['1x1x1'][-1]


def assert_split(run: Run, state, mesh: str) -> None:
    """Each leaf lies as planned, moments with their parameters; matrices of the width are split."""
    planned = jax.tree.leaves(run.shardings)
    for leaf, sharding in zip(jax.tree.leaves(state), planned, strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    split = [
        leaf
        for leaf in jax.tree.leaves(state.params)
        if leaf.addressable_shards[0].data.size < leaf.size
    ]
    largest = max(jax.tree.leaves(state.params), key=lambda leaf: leaf.size)
    part = largest.addressable_shards[0].data.size / largest.size
    assert part == {'8x1x1': 1, '1x8x1': 1 / 8, '2x2x2': 1 / 4}[mesh]
    moments = [
        leaf
        for leaf in jax.tree.leaves(state.optimizer)
        if leaf.addressable_shards[0].data.size < leaf.size
    ]
    assert len(moments) == 2 * len(split)  # adamw keeps two of each


SPLIT_MESHES = {
    'fsdp_context_tensor': {'data': 1, 'fsdp': 2, 'context': 2, 'tensor': 2},
    'slices': {'slice': 2, 'data': 1, 'fsdp': 2, 'context': 2},
    'context': {'data': 1, 'context': 8},
    'tensor': {'data': 1, 'tensor': 8},
}
COMMON = {'name': 'transformer', 'layers': 2, 'width': 32, 'heads': 8, 'mlp': 64}
TRANSFORMERS = {
    'decoder': (
        partial(sentences, length=16),
        {**COMMON, 'dropout': 0.1, 'attention_dropout': 0.1, 'stochastic_depth': 0.1},
    ),
    'llama': (
        partial(sentences, length=16),
        {
            **COMMON,
            'kv_heads': 2,
            'positions': 'rope',
            'norm': 'rms',
            'activation': 'swiglu',
            'bias': False,
            'tied': False,
            'window': 11,
            'scan': True,
            'remat': 'full',
        },
    ),
    'encoder': (
        documents,
        {
            **COMMON,
            'attention': 'bidirectional',
            'norm_position': 'post',
            'embedding_norm': True,
            'head_transform': True,
            'query_key_norm': True,
            'attention_soft_cap': 5.0,
        },
    ),
}
FAST = {('decoder', 'fsdp_context_tensor'), ('llama', 'tensor'), ('encoder', 'context')}


@cache
def steps_taken(name: str, mesh: str | None) -> tuple[list[float], dict[str, np.ndarray]]:
    """The losses, and what three steps of gradient descent have added to each parameter."""
    make, model = TRANSFORMERS[name]
    splits = make()
    optimizer = {'name': 'sgd', 'learning_rate': 0.5}
    config = tiny_config(model=model, mesh=SPLIT_MESHES.get(mesh, {}), optimizer=optimizer, **LM)
    with pytest.MonkeyPatch.context() as patch:
        if mesh is None:
            one_device(patch)
        run = build(config, splits)
    found, state = losses(run, splits)
    with jax.set_mesh(run.mesh):
        before = run.init().params
    added = jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), state.params, before)
    return found, dict(zip(trees.names(added), jax.tree.leaves(added), strict=True))


@pytest.mark.parametrize(
    ('name', 'mesh'),
    [
        pytest.param(name, mesh, marks=() if (name, mesh) in FAST else pytest.mark.slow)
        for name in TRANSFORMERS
        for mesh in SPLIT_MESHES
    ],
)
def test_a_transformer_takes_the_same_steps_however_it_is_split(name, mesh):
    """Gradients are compared leaf by leaf: a wrong one need not show in the first losses."""
    want, added = steps_taken(name, None)
    got, added_there = steps_taken(name, mesh)
    np.testing.assert_allclose(got, want, rtol=2e-5)
    largest = max(np.abs(change).max() for change in added.values())
    for leaf, change in added.items():
        limit = 1e-4 * np.abs(change).max() + 1e-6 * largest  # a key's bias changes nothing
        np.testing.assert_allclose(added_there[leaf], change, rtol=0, atol=limit, err_msg=leaf)


@pytest.fixture
def compiled_anew():
    """Nothing out of the cache, which would keep the compiler's warnings to itself."""
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()
    yield
    jax.config.update('jax_enable_compilation_cache', True)
    compilation_cache.reset_cache()


def test_norms_see_parts_of_the_sequence_and_attention_its_heads(compiled_anew, capfd):
    """16 rows of 32 positions, over context=2 and tensor=4; two key heads for eight heads."""
    model = {**TRANSFORMERS['llama'][1], 'width': 40, 'head_dim': 6, 'scan': False, 'remat': 'none'}
    mesh = {'data': 1, 'context': 2, 'tensor': 4}
    run = build(tiny_config(model=model, mesh=mesh, **LM), sentences(length=32))
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=run.batch_sharding),
        batch_spec(run.splits.spec, 16),
    )
    with jax.set_mesh(run.mesh):
        step = jax.jit(partial(train_step, run.recipe))
        program = step.lower(run.abstract, batch).compile().as_text()
    norms = re.findall(r'f32\[([\d,]+)\]\S* rsqrt\(', program)
    assert norms
    assert {math.prod(map(int, shape.split(','))) for shape in norms} == {16 * 32 / 8}
    gathered = set(re.findall(r'f32\[(16,16,[\d,]+)\]\S* all-gather\(', program))
    assert gathered == {'16,16,40', '16,16,2,6'}  # what branches read; gradients of shared keys
    assert 'Involuntary' not in capfd.readouterr().err


@pytest.mark.parametrize(
    ('name', 'mesh', 'message'),
    [
        ('decoder', {'data': 1, 'tensor': 8}, '4 heads do not divide over tensor=8; use 1, 2 or 4'),
        (
            'decoder',
            {'data': 1, 'context': 8},
            '12 positions do not divide over context=8; use 2, 3, 4, 6 or 12, or rows of 8 or 16',
        ),
        ('vit', {'data': 4, 'context': 2}, '5 positions do not divide over context=2; use 1 or 5'),
        ('lstm', {'data': 4, 'context': 2}, 'expected 1 for a model that reads no sequence'),
    ],
)
def test_what_a_mesh_cannot_divide_is_refused(name, mesh, message):
    make, model, values = MODELS[name]
    with pytest.raises(ConfigError, match=message):
        build(tiny_config(model=model, mesh=mesh, **values), make())
