"""What the size of a model does to each of its tensors, against the tables of the papers."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import trees
from bigjax.config import resolve
from bigjax.errors import ConfigError
from bigjax.train.build import build
from bigjax.train.step import train_step
from tests.train.tiny import blobs, images, sentences

MODELS = {
    'mlp': ({'widths': (16, 16)}, {'widths': (4, 4)}),
    'cnn': (
        {'channels': (16, 16), 'dense': (32,), 'pools': 1},
        {'channels': (4, 4), 'dense': (8,)},
    ),
    'resnet': ({'width': 16, 'stem': 'cifar', 'norm': 'batch'}, {'width': 4}),
    'vit': ({'width': 64, 'heads': 4, 'layers': 2, 'patch': 4}, {'width': 16, 'heads': 1}),
    'transformer': (
        {'width': 64, 'heads': 4, 'layers': 2, 'tied': False},
        {'width': 16, 'heads': 1},
    ),
}
"""Fields, and those of a base four times as narrow."""


def a_run(model, name, optimizer=None, base=None, options=None, **parametrization):
    fields, narrow = MODELS[model]
    splits = {'mlp': blobs, 'transformer': sentences}.get(model, images)()
    task = 'language_model' if model == 'transformer' else 'classification'
    given = {'base': narrow if base is None else base} if name != 'sp' else {}
    config = {
        'model': {'name': model, **fields, **(options or {})},
        'task': task,
        'data': 'wine',
        'train': {'steps': 4, 'batch_size': 8},
        'optimizer': optimizer or {'name': 'adamw', 'learning_rate': 0.125, 'weight_decay': 0.25},
        'parametrization': {'name': name, **given, **parametrization},
    }
    return build(resolve(config), splits)


def by_name(tree):
    return dict(zip(trees.names(tree), jax.tree.leaves(tree), strict=True))


def labels(run):
    return {name: t.label for name, t in by_name(run.recipe.model.scaling.tensors).items()}


@pytest.mark.parametrize('model', MODELS)
def test_every_parameter_has_the_label_of_its_place(model):
    ends = {
        'embedding': 'input', 'positions': 'input', 'bias': 'vector', 'scale': 'vector',
        'token': 'vector',
    }  # fmt: skip
    first = {'mlp': 'hidden_0/', 'cnn': 'conv_0/', 'resnet': 'stem/', 'vit': 'embed/'}
    found = labels(a_run(model, 'mup'))
    for name, label in found.items():
        expected = ends.get(name.rpartition('/')[2], 'hidden')
        if name == 'read_out/kernel':
            expected = 'output'
        elif name.startswith(first.get(model, '-')) and name.endswith('kernel'):
            expected = 'input'
        assert label == expected, name
    assert {'input', 'hidden', 'output', 'vector'} == set(found.values())


def test_a_tied_read_out_is_the_embedding():
    run = a_run('transformer', 'mup', options={'tied': True})
    assert labels(run)['embed/embedding'] == 'input'
    assert run.recipe.model.scaling.width == 4


@pytest.mark.parametrize('model', ['mlp', 'cnn', 'transformer'])
def test_initial_deviations(model):
    """He's and LeCun's are powers of the fan-in already; a read-out keeps its base's."""
    runs = [a_run(model, name) for name in ('mup', 'sp')]
    params, plain = (by_name(run.init().params) for run in runs)
    of_hidden, of_output = (1 / 2, 1) if model == 'transformer' else (1, 2)
    factors = {'hidden': of_hidden, 'output': of_output, 'input': 1, 'vector': 1}
    for name, label in labels(runs[0]).items():
        np.testing.assert_allclose(params[name], factors[label] * plain[name], rtol=1e-5)


RATES = {  # of input, hidden, output, bias of a hidden layer, bias of the read-out at m = 4
    'adamw': (1, 1 / 4, 1, 1, 1),
    'lion': (1, 1 / 4, 1, 1, 1),
    'sgd': (4, 1, 4, 4, 1),
}


@pytest.mark.parametrize('name', RATES)
def test_rates_are_those_of_table_8(name):
    """By what an update is, not by what it is said to be."""
    optimizer = {'name': name, 'learning_rate': 0.125}
    updates = {}
    for kind in ('mup', 'sp'):
        run = a_run('mlp', kind, optimizer)
        params = jax.tree.map(jnp.ones_like, run.abstract.params)
        state = run.recipe.optimizer.init(params)
        updates[kind] = by_name(run.recipe.optimizer.update(params, state, params)[0])
    names = (
        'hidden_0/dense/kernel', 'hidden_1/dense/kernel', 'read_out/kernel',
        'hidden_1/dense/bias', 'read_out/bias',
    )  # fmt: skip
    for leaf, want in zip(names, RATES[name], strict=True):
        np.testing.assert_allclose(updates['mup'][leaf], want * updates['sp'][leaf], rtol=1e-6)


def test_epsilon_and_decay_under_completep():
    """Adam's first step is -rate * g / (|g| + eps); here eps is no small thing."""
    optimizer = {'name': 'adamw', 'learning_rate': 0.5, 'weight_decay': 0.25, 'eps': 3.0}
    run = a_run('transformer', 'completep', optimizer, base_depth=1)
    params = jax.tree.map(jnp.ones_like, run.abstract.params)
    updates, _ = run.recipe.optimizer.update(params, run.recipe.optimizer.init(params), params)
    for name, update in by_name(updates).items():
        label, in_block = labels(run)[name], name.startswith('block')
        rate = 0.5 / (4 if label == 'hidden' else 1)
        eps = 3.0 / 4 / (2 if in_block else 1)
        decay = {'hidden': 0.25 * 4, 'vector': 0}.get(label, 0.25)
        want = -rate * (1 / (1 + eps) + decay)
        np.testing.assert_allclose(update, want, rtol=1e-5, err_msg=name)


def test_the_depth_exponent():
    optimizer = {'name': 'adamw', 'learning_rate': 0.5}
    run = a_run('transformer', 'completep', optimizer, base_depth=1, depth_exponent=0.5)
    rates = by_name(run.recipe.model.scaling.rates('adam'))
    assert rates['block_0/mlp/dense/kernel'] == pytest.approx(2**-0.5 / 4)
    assert rates['block_1/mlp/dense/bias'] == pytest.approx(2**-0.5)
    assert rates['final_norm/scale'] == rates['embed/embedding'] == 1


def test_a_branch_starts_as_at_the_base_under_completep():
    """.02^2 / (2 L) at the base's L, over m."""
    found = by_name(a_run('transformer', 'completep', base_depth=1).init().params)
    for name in ('block_0/attention/out/kernel', 'block_1/mlp_out/kernel'):
        np.testing.assert_allclose(found[name].std(), 0.02 / math.sqrt(2 * 1 * 4), rtol=0.05)
    under_mup = by_name(a_run('transformer', 'mup').init().params)['block_1/mlp_out/kernel']
    np.testing.assert_allclose(under_mup.std(), 0.02 / math.sqrt(2 * 2 * 4), rtol=0.05)


def test_muon_moves_matrices_by_one_spectral_norm():
    optimizer = {'name': 'muon', 'learning_rate': 1.0, 'consistent_rms': 0.2}
    norms = {}
    for kind in ('mup', 'sp'):
        run = a_run('mlp', kind, optimizer, options={'widths': (64, 64)}, base={'widths': (16, 16)})
        params = run.init().params
        grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(1), p.shape), params)
        updates = run.recipe.optimizer.update(grads, run.recipe.optimizer.init(params), params)[0]
        norms[kind] = np.linalg.norm(by_name(updates)['hidden_1/dense/kernel'], 2)
    assert norms['sp'] == pytest.approx(0.2 * math.sqrt(64), rel=0.3)
    assert norms['mup'] == pytest.approx(norms['sp'] / 2, rel=1e-5)


@pytest.mark.parametrize('model', MODELS)
@pytest.mark.parametrize('name', ['mup', 'completep'])
def test_at_the_base_it_is_sp_bit_for_bit(model, name):
    """The same program, to the last operation: of the initial state, and of a step."""
    depth = {'base_depth': 2} if (name, model) == ('completep', 'transformer') else {}
    assert program(a_run(model, name, base=MODELS[model][0], **depth)) == program(
        a_run(model, 'sp')
    )


@pytest.mark.parametrize('optimizer', ['sgd', 'muon', 'lion'])
def test_at_the_base_every_optimizer_is_sp_bit_for_bit(optimizer):
    options = {'name': optimizer, 'weight_decay': 0.1}
    ours = a_run('transformer', 'mup', options, base={'width': 64})
    assert program(ours) == program(a_run('transformer', 'sp', options))


def test_away_from_the_base_it_is_another_program():
    assert program(a_run('mlp', 'mup')) != program(a_run('mlp', 'sp'))


def program(run):
    with jax.set_mesh(run.mesh):
        init = jax.make_jaxpr(run.init)()
        step = jax.make_jaxpr(partial(train_step, run.recipe))(run.abstract, run.abstract_batch)
    return re.sub('0x[0-9a-f]+', '', f'{init} {step}')


REFUSED = {
    'expected one of .*adamw.* for which the theory has no rates': {
        'optimizer': {'name': 'lars', 'learning_rate': 1.0}
    },
    "expected 'mup' under sgd": {'optimizer': {'name': 'sgd'}, 'name': 'completep'},
    'weight_decay: expected 0 of adam under mup': {
        'optimizer': {'name': 'adam', 'weight_decay': 0.1}
    },
    'widht': {'base': {'widht': 16}},
    'depth goes into base_depth': {'base': {'width': 16, 'layers': 1}},
    'without a mixture of experts': {'options': {'experts': 2}},
    "base_depth is of 'completep'": {'base_depth': 1},
    "expects the base model's own fields": {'base': {}},
}


@pytest.mark.parametrize('message', REFUSED)
def test_what_theory_does_not_say_is_refused(message):
    given = {'name': 'mup', **REFUSED[message]}
    with pytest.raises(ConfigError, match=message):
        a_run('transformer', given.pop('name'), **given)


def test_depth_of_a_model_without_blocks_is_refused():
    with pytest.raises(ConfigError, match='without residual blocks'):
        a_run('mlp', 'completep', base_depth=2)


def test_initializers_that_tell_nothing_are_refused(monkeypatch):
    monkeypatch.setattr('bigjax.models.mlp.initializers.before', lambda _: jax.nn.initializers.ones)
    with pytest.raises(ConfigError, match='tell their initial variance, got hidden_0/dense/kernel'):
        a_run('mlp', 'mup')
