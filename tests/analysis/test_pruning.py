import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigjax.analysis import pruning
from bigjax.errors import ConfigError

RATES = {'hidden.*kernel': 0.2, 'read_out/kernel': 0.1}


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {
        'hidden_0': {'kernel': rng.normal(size=(10, 20)), 'bias': np.zeros(20)},
        'hidden_1': {'kernel': 10 * rng.normal(size=(20, 5)), 'bias': np.zeros(5)},
        'read_out': {'kernel': rng.normal(size=(5, 4)), 'bias': np.zeros(4)},
    }


def counts(masks):
    return {name: int(masks[name]['kernel'].sum()) for name in masks}


def test_each_layer_loses_its_smallest(params):
    masks = pruning.prune(params, pruning.everything(params), RATES)
    assert counts(masks) == {'hidden_0': 160, 'hidden_1': 80, 'read_out': 18}
    kernel, mask = np.abs(params['hidden_1']['kernel']), masks['hidden_1']['kernel']
    np.testing.assert_array_equal(mask, kernel > np.sort(kernel.ravel())[19])
    assert all(masks[name]['bias'].all() for name in masks)


def test_globally_the_layer_of_small_weights_loses_more(params):
    masks = pruning.prune(params, pruning.everything(params), {'hidden.*kernel': 0.5}, 'global')
    left = counts(masks)
    assert left['hidden_0'] + left['hidden_1'] == 150
    lost = [np.abs(params[n]['kernel'])[~masks[n]['kernel']] for n in ('hidden_0', 'hidden_1')]
    kept = [np.abs(params[n]['kernel'])[masks[n]['kernel']] for n in ('hidden_0', 'hidden_1')]
    assert np.concatenate(lost).max() <= np.concatenate(kept).min()
    assert left['read_out'] == 20


def test_rounds_compound_and_never_revive(params):
    masks, rng = pruning.everything(params), np.random.default_rng(1)
    for _ in range(3):
        trained = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
        after = pruning.prune(trained, masks, RATES)
        assert all(
            (old | ~new).all()
            for old, new in zip(jax.tree.leaves(masks), jax.tree.leaves(after), strict=True)
        )
        masks = after
    assert counts(masks)['hidden_0'] == round(round(160 * 0.8) * 0.8)
    assert pruning.density(masks, 'hidden_0/kernel') == counts(masks)['hidden_0'] / 200


def test_pruned_weights_stay_zero_whatever_the_optimizer_remembers(params):
    masks = pruning.prune(params, pruning.everything(params), {'kernel': 0.5})
    start = jax.tree.map(jnp.float32, pruning.apply(params, masks))
    optimizer = pruning.held(optax.adamw(0.1, weight_decay=0.1), masks)
    state, at = optimizer.init(start), start
    for _ in range(3):
        grads = jax.tree.map(jnp.ones_like, at)
        updates, state = optimizer.update(grads, state, at)
        at = optax.apply_updates(at, updates)
    for leaf, old, mask in zip(*map(jax.tree.leaves, (at, start, masks)), strict=True):
        assert (np.asarray(leaf)[~mask] == 0).all()
        assert (np.asarray(leaf)[mask] != np.asarray(old)[mask]).all()


def test_random_masks_keep_the_counts(params):
    masks = pruning.prune(params, pruning.everything(params), {'kernel': 0.5})
    drawn = pruning.random_like(masks, np.random.default_rng(0))
    assert counts(drawn) == counts(masks)
    assert (drawn['hidden_0']['kernel'] != masks['hidden_0']['kernel']).any()


def test_mistakes_are_told(params):
    masks = pruning.everything(params)
    with pytest.raises(ConfigError, match="'kernl' picks no parameter; names: hidden_0/bias"):
        pruning.prune(params, masks, {'kernl': 0.2})
    with pytest.raises(ConfigError, match=r'expected 0 <= rate < 1, got 1\.2'):
        pruning.prune(params, masks, {'kernel': 1.2})
