"""Adapters against the models that they adapt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bigjax import trees
from bigjax.config import LoraConfig
from bigjax.errors import ConfigError
from bigjax.models import lora
from bigjax.train.build import build
from tests.train.test_meshes import losses, one_device
from tests.train.tiny import sentences, tiny_config

MODEL = {'name': 'transformer', 'layers': 2, 'width': 16, 'heads': 4, 'tied': False}
ALL = {'rank': 2, 'alpha': 4, 'targets': r'(attention|mlp).*/kernel'}


def run_of(adapters=None, model=MODEL, **values):
    values = {'optimizer.learning_rate': 0.05, **values}
    config = tiny_config(model=model, task={'name': 'language_model'}, lora=adapters, **values)
    return build(config, sentences())


def adapted(adapters=ALL, model=MODEL):
    """A run, its fresh params, and some whose b is not zero."""
    run = run_of(adapters, model)
    params = run.recipe.model.init(jax.random.key(0))['params']
    rng = np.random.default_rng(0)
    moved = trees.map_with_name(
        lambda name, leaf: (
            jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) if name.endswith('/b') else leaf
        ),
        params,
    )
    return run, params, moved


def outputs(run, params):
    return run.recipe.model.apply(
        {'params': params}, sentences().sources['val'][np.arange(4)]['inputs']
    )[0]


def test_at_first_the_model_is_its_base():
    run, params, _ = adapted()
    base = run_of()
    own = base.recipe.model.init(jax.random.key(0))['params']
    assert params.keys() - own.keys() == {'lora'}
    jax.tree.map(np.testing.assert_array_equal, own, {name: params[name] for name in own})
    np.testing.assert_array_equal(outputs(run, params), outputs(base, own))
    assert run.recipe.model.context == base.recipe.model.context
    assert run.recipe.model.empty_cache is base.recipe.model.empty_cache or (
        run.recipe.model.empty_cache.keywords == base.recipe.model.empty_cache.keywords
    )


def test_shapes_are_those_of_flattened_kernels():
    _, params, _ = adapted()
    shapes = jax.tree.map(jnp.shape, params['lora'])
    assert shapes['block_0.attention.query.kernel'] == {'a': (16, 2), 'b': (2, 16)}
    assert shapes['block_1.attention.out.kernel'] == {'a': (16, 2), 'b': (2, 16)}
    assert shapes['block_1.mlp_out.kernel'] == {'a': (64, 2), 'b': (2, 16)}
    many = adapted({'rank': 64})[1]['lora']['block_0.attention.value.kernel']['a']
    assert np.var(many) == pytest.approx(1 / 16, rel=0.1)


def test_merged_kernels_are_the_sum_of_the_products():
    run, _, moved = adapted()
    merged = lora.merge(moved, run.config.lora)
    np.testing.assert_allclose(outputs(run_of(), merged), outputs(run, moved), rtol=1e-5, atol=1e-5)
    name = ('block_0', 'attention', 'query', 'kernel')
    before, after = (tree['block_0']['attention']['query']['kernel'] for tree in (moved, merged))
    pair = moved['lora']['.'.join(name)]
    expected = np.einsum('dr,rhc->dhc', pair['a'], pair['b'].reshape(2, 4, 4)) * 2
    np.testing.assert_allclose(after - before, expected, rtol=1e-4, atol=1e-5)


def test_every_expert_has_a_pair_of_its_own():
    run, _, moved = adapted({'rank': 2, 'targets': 'experts/out_kernel'}, {**MODEL, 'experts': 3})
    pair = moved['lora']['block_1.experts.out_kernel']
    axes = run.recipe.model.axes['params']['lora']['block_1.experts.out_kernel']
    assert axes == {'a': P('experts', 'mlp', 'rank'), 'b': P('experts', 'rank', 'embed')}
    merged = lora.merge(moved, run.config.lora)
    before, after = (tree['block_1']['experts']['out_kernel'] for tree in (moved, merged))
    for expert in range(3):
        product = run.config.lora.scale * pair['a'][expert] @ pair['b'][expert]
        np.testing.assert_allclose(after[expert] - before[expert], product, rtol=1e-4, atol=1e-5)


def test_the_base_has_no_gradient():
    run, _, moved = adapted()
    grads = jax.grad(lambda params: jnp.sum(outputs(run, params) ** 2))(moved)
    for name, grad in zip(trees.names(grads), jax.tree.leaves(grads), strict=True):
        assert np.any(np.asarray(grad)) == name.startswith(('lora/', 'read_out')), name


@pytest.mark.parametrize('accumulation', [1, 2])
def test_only_adapters_and_the_read_out_train(accumulation):
    values = {'task.l2': 0.1, 'optimizer.weight_decay': 0.1, 'train.accumulation': accumulation}
    run = run_of(
        ALL,
        **values,
        **{'mesh.data': 8} if accumulation == 1 else {'mesh.data': 2, 'mesh.tensor': 4},
    )
    before = jax.device_get(run.init().params)
    found, after = losses(run, sentences(), steps=3)
    assert found[-1] < found[0]

    def check(name, old, new):
        trains = name.startswith(('lora/', 'read_out'))
        assert (np.asarray(old) != np.asarray(new)).any() == trains, name

    trees.map_with_name(check, before, after.params)
    moments = trees.names(after.optimizer)
    assert not any('/embed/' in name or '/block_0/' in name for name in moments)
    assert any('lora' in name for name in moments)


def stack(params):
    """block_0, block_1 as one tree `blocks`, and their adapters as one pair."""
    layers = [params[f'block_{i}'] for i in range(2)]
    pairs = params['lora']
    return {
        **{name: params[name] for name in params if not name.startswith('block_')},
        'blocks': jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers),
        'lora': {
            name.replace('block_0', 'blocks'): jax.tree.map(
                lambda *leaves: jnp.stack(leaves), pairs[name], pairs[name.replace('_0', '_1', 1)]
            )
            for name in pairs
            if name.startswith('block_0')
        },
    }


def test_stacked_layers_are_as_layers_apart():
    run, _, moved = adapted()
    stacked, fresh, _ = adapted(model={**MODEL, 'scan': True})
    params = stack(moved)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)
    np.testing.assert_allclose(outputs(stacked, params), outputs(run, moved), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('scan', [False, True])
def test_every_mesh_gives_the_same_losses(scan, monkeypatch):
    model = {**MODEL, 'scan': scan}
    mesh = {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2}
    run = run_of(ALL, model, **mesh)
    found, state = losses(run, sentences(), steps=4)
    pair = state.params['lora'][f'{"blocks" if scan else "block_0"}.attention.query.kernel']
    assert 'fsdp' in str(pair['a'].sharding.spec)
    assert 'tensor' in str(pair['b'].sharding.spec)
    with monkeypatch.context() as patch:
        one_device(patch)
        expected, _ = losses(run_of(ALL, model), sentences(), steps=4)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_cannot_be_adapted_is_refused():
    model = run_of().recipe.model
    with pytest.raises(ConfigError, match='matches none; names: block_0/'):
        lora.adapt(model, LoraConfig(2, targets='atention'))
    with pytest.raises(ConfigError, match='got final_norm/bias of shape'):
        lora.adapt(model, LoraConfig(2, targets='final_norm'))
