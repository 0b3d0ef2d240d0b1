"""Every entry of the table: update rules, weight decay, stacked layers, shards, groups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bigjax import trees
from bigjax.config import OptimizerConfig
from bigjax.errors import ConfigError
from bigjax.optim.optimizers import OPTIMIZERS, build
from bigjax.optim.shardings import state_shardings
from bigjax.schema import build as from_mapping

LAYERS, STEPS = 2, 3
AXES = {
    'blocks': {'kernel': P('layers', 'embed', 'mlp'), 'bias': P('layers', 'mlp')},
    'norm': {'scale': P('norm')},
    'head': {'kernel': P('embed', 'vocab')},
}
SHAPES = {
    'blocks': {'kernel': (LAYERS, 8, 4), 'bias': (LAYERS, 4)},
    'norm': {'scale': (10,)},
    'head': {'kernel': (8, 6)},
}
SPECS = {
    'blocks': {'kernel': P(None, 'fsdp', 'tensor'), 'bias': P(None, 'tensor')},
    'norm': {'scale': P()},
    'head': {'kernel': P('fsdp', 'tensor')},
}
SHARD_OF = {8: 4, 4: 2, 6: 3}  # by the size of an axis: each is split in two, the others are whole


def config(name: str, **options) -> OptimizerConfig:
    return from_mapping(OptimizerConfig, {'name': name, **options}, 'config.optimizer')


def schedule(step: jax.Array) -> jax.Array:
    return 0.1 / (1.0 + step)


def draw(seed: int) -> dict:
    """Random arrays of SHAPES; layers differ in scale."""
    rng = np.random.default_rng(seed)
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    tree = jax.tree.map(lambda s: rng.normal(size=s), SHAPES, is_leaf=is_shape)
    scales = 10.0 ** np.arange(LAYERS)
    tree['blocks']['kernel'] *= scales[:, None, None]
    tree['blocks']['bias'] *= scales[:, None]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def unstack(tree: dict) -> dict:
    """The same tree with a block of its own for each layer."""
    rest = {name: branch for name, branch in tree.items() if name != 'blocks'}
    take = lambda layer: jax.tree.map(lambda p: p[layer], tree['blocks'])  # noqa: E731
    return {**{f'block_{layer}': take(layer) for layer in range(LAYERS)}, **rest}


UNSTACKED_AXES = {
    **{f'block_{i}': {'kernel': P('embed', 'mlp'), 'bias': P('mlp')} for i in range(LAYERS)},
    'norm': AXES['norm'],
    'head': AXES['head'],
}


def train(optimizer, params, state, grads, places=(None, None)):
    """The updates of successive steps, and the final state; places: shardings of the two."""
    fast = {'xla_backend_optimization_level': 0}  # to compile, not to run
    update = jax.jit(optimizer.update, out_shardings=places, compiler_options=fast)
    updates = []
    for grad in grads:
        step, state = update(grad, state, params)
        params = optax.apply_updates(params, step)
        updates.append(step)
    return updates, state


def assert_close(actual, expected, tolerance: float = 5e-6) -> None:
    for name, a, b in zip(
        trees.names(expected), jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_stacked_layers_and_shards_change_nothing(name):
    options = {'min_dim_size_to_factor': 2} if name == 'adafactor' else {}
    settings = config(name, learning_rate=0.1, weight_decay=0.1, clip=50.0, **options)
    params, grads = draw(0), [draw(seed) for seed in range(1, 1 + STEPS)]
    single = build(settings, schedule, params, AXES)
    expected, _ = train(single, params, single.init(params), grads)

    blocks = unstack(params)
    separate = build(settings, schedule, blocks, UNSTACKED_AXES)
    updates, _ = train(separate, blocks, separate.init(blocks), [unstack(grad) for grad in grads])
    assert_close(updates, [unstack(update) for update in expected])

    devices = np.array(jax.devices()).reshape(2, 2, 2)
    mesh = Mesh(devices, ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3)
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)
    state_places = state_shardings(single, params, places)
    sharded, *grads = jax.device_put([params, *grads], [places] * (1 + STEPS))
    state = jax.jit(single.init, out_shardings=state_places)(sharded)
    updates, state = train(single, sharded, state, grads, (places, state_places))
    assert_close(updates, expected)
    for leaf_name, leaf in zip(trees.names(state), jax.tree.leaves(state), strict=True):
        shard = tuple(SHARD_OF.get(size, size) for size in leaf.shape)
        assert leaf.addressable_shards[0].data.shape == shard, leaf_name


def adam_direction(s, g, t, b1=0.9, b2=0.999, eps=1e-8, nesterov=False):
    s['m'] = b1 * s.get('m', 0.0) + (1 - b1) * g
    s['v'] = b2 * s.get('v', 0.0) + (1 - b2) * g**2
    m = s['m'] / (1 - b1**t)
    if nesterov:
        m = b1 * s['m'] / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
    return m / (np.sqrt(s['v'] / (1 - b2**t)) + eps)


def momentum_direction(s, g, t, nesterov=False):
    s['v'] = 0.9 * s.get('v', 0.0) + g
    return g + 0.9 * s['v'] if nesterov else s['v']


def adagrad_direction(s, g, t):
    s['sum'] = s.get('sum', 0.1) + g**2
    return g / np.sqrt(s['sum'] + 1e-7)


def rmsprop_direction(s, g, t):
    s['v'] = 0.9 * s.get('v', 0.0) + 0.1 * g**2
    return g / np.sqrt(s['v'] + 1e-8)


def lion_direction(s, g, t):
    m = s.get('m', 0.0)
    s['m'] = 0.99 * m + 0.01 * g
    return np.sign(0.9 * m + 0.1 * g)


def lars_direction(s, g, t, w):
    return momentum_direction(s, 0.001 * np.linalg.norm(w) / np.linalg.norm(g) * g, t)


DIRECTIONS = {
    'sgd': lambda s, g, t: g,
    'momentum': momentum_direction,
    'nesterov': functools.partial(momentum_direction, nesterov=True),
    'adam': adam_direction,
    'adamw': adam_direction,
    'nadam': functools.partial(adam_direction, nesterov=True),
    'nadamw': functools.partial(adam_direction, nesterov=True),
    'adagrad': adagrad_direction,
    'rmsprop': rmsprop_direction,
    'lion': lion_direction,
    'lamb': functools.partial(adam_direction, eps=1e-6),
    'lars': lars_direction,
}
DECOUPLED = ('adamw', 'nadamw', 'lion', 'lamb')


def reference_steps(name: str, w: np.ndarray, grads: list, weight_decay: float) -> list:
    """Updates by the update rule as its paper writes it, in float64."""
    s, updates = {}, []
    for t, g in enumerate(grads, 1):
        rate = 0.1 / t  # `schedule`, whose steps count from 0
        if name in DECOUPLED:
            u = DIRECTIONS[name](s, g, t) + weight_decay * w
        else:
            extra = (w,) if name == 'lars' else ()
            u = DIRECTIONS[name](s, g + weight_decay * w, t, *extra)
        if name == 'lamb':
            u *= np.linalg.norm(w) / np.linalg.norm(u)
        updates.append(-rate * u)
        w = w + updates[-1]
    return updates


@pytest.mark.parametrize('name', DIRECTIONS)
def test_update_rule(name):
    rng = np.random.default_rng(0)
    w, *grads = ({k: rng.normal(size=(2, 5)) for k in ('kernel', 'bias')} for _ in range(4))
    to_float32 = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float32))
    params, axes = to_float32(w), {'kernel': P('embed', 'mlp'), 'bias': P('embed', 'mlp')}
    optimizer = build(config(name, weight_decay=0.3), schedule, params, axes)
    updates, _ = train(optimizer, params, optimizer.init(params), [to_float32(g) for g in grads])
    for leaf, weight_decay in (('kernel', 0.3), ('bias', 0.0)):
        expected = reference_steps(name, w[leaf], [g[leaf] for g in grads], weight_decay)
        for update, reference in zip(updates, expected, strict=True):
            np.testing.assert_allclose(update[leaf], reference, rtol=2e-5, atol=1e-7)


def test_muon_orthogonalises_hidden_matrices_only():
    rng = np.random.default_rng(0)
    axes = {
        'dense': {'kernel': P('embed', 'mlp'), 'bias': P('mlp')},
        'conv': {'kernel': P('kernel_height', 'kernel_width', 'embed', 'mlp')},
        'query': {'kernel': P('embed', 'heads', 'head_dim')},
        'head': {'kernel': P('embed', 'vocab')},
    }
    sizes = {'kernel_height': 3, 'kernel_width': 3, 'embed': 4, 'mlp': 12, 'heads': 2}
    sizes |= {'head_dim': 5, 'vocab': 6}
    params, grad = (
        jax.tree.map(
            lambda names: jnp.asarray(rng.normal(size=[sizes[n] for n in names]), jnp.float32), axes
        )
        for _ in range(2)
    )
    settings = config('muon', learning_rate=0.1, weight_decay=0.1, adamw_learning_rate=0.02)
    optimizer = build(settings, schedule, params, axes)
    (update,), _ = train(optimizer, params, optimizer.init(params), [grad])

    matrices = {'dense': (4, 12), 'conv': (36, 12), 'query': (4, 10)}
    flat = lambda tree: {k: tree[k]['kernel'].reshape(s) for k, s in matrices.items()}  # noqa: E731
    oracle = optax.contrib.muon(0.1, weight_decay=0.1)
    expected, _ = oracle.update(flat(grad), oracle.init(flat(params)), flat(params))
    assert_close(flat(update), expected)

    rest = lambda tree: (tree['dense']['bias'], tree['head']['kernel'])  # noqa: E731
    oracle = optax.adamw(0.02, weight_decay=0.1, mask=(False, True))
    expected, _ = oracle.update(rest(grad), oracle.init(rest(params)), rest(params))
    assert_close(rest(update), expected)


def test_groups_scale_freeze_and_decay():
    params, grad = draw(0), draw(1)
    groups = [
        {'pattern': 'blocks', 'learning_rate': 0.0},
        {'pattern': 'head', 'learning_rate': 0.5, 'weight_decay': 2.0},
        {'pattern': '.*'},
    ]
    settings = config('adamw', weight_decay=0.1, groups=groups, decay=['kernel', 'scale'])
    optimizer = build(settings, schedule, params, AXES)
    state = optimizer.init(params)
    assert not [name for name in trees.names(state) if 'blocks' in name]
    update, _ = optimizer.update(grad, state, params)
    plain = config('adamw')
    expected, _ = (o := build(plain, schedule, params, AXES)).update(grad, o.init(params), params)
    assert all(not leaf.any() for leaf in jax.tree.leaves(update['blocks']))
    head = 0.5 * (expected['head']['kernel'] - 0.1 * 2.0 * 0.1 * params['head']['kernel'])
    assert_close(update['head']['kernel'], head)
    scale = expected['norm']['scale'] - 0.1 * 0.1 * params['norm']['scale']
    assert_close(update['norm']['scale'], scale)


def test_clip_is_by_the_norm_of_all_that_is_trained():
    params, grad = draw(0), draw(1)
    frozen = {'pattern': 'head', 'learning_rate': 0.0}
    settings = config('sgd', clip=2.0, groups=[frozen, {'pattern': '.*'}])
    optimizer = build(settings, schedule, params, AXES)
    update, _ = optimizer.update(grad, optimizer.init(params), params)
    np.testing.assert_allclose(optax.tree.norm(update), 0.1 * 2.0, rtol=1e-6)
    ratio = update['norm']['scale'] / update['blocks']['bias'][0, 0]
    np.testing.assert_allclose(
        ratio, grad['norm']['scale'] / grad['blocks']['bias'][0, 0], rtol=1e-5
    )


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'name': 'adamwe'}, r"unknown config.optimizer.name 'adamwe': did you mean .*'adamw'"),
        ({'name': 'adam', 'bb1': 0.9}, r"unknown key config.optimizer.bb1 .*did you mean 'b1'"),
        ({'name': 'adam', 'learning_rat': 1.0}, r"did you mean 'learning_rate'"),
        ({'name': 'adam', 'b1': 1.0}, r'config.optimizer.b1: expected a number >= 0 and < 1'),
        ({'name': 'adam', 'eps': 'small'}, r'config.optimizer.eps: expected a float'),
        ({'name': 'sgd', 'groups': [{'pattern': 'head'}]}, r'patterns must cover all'),
        (
            {'name': 'sgd', 'groups': [{'pattern': '.*', 'learning_rate': 0.0}]},
            r'every parameter is frozen',
        ),
        ({'name': 'no_such_package.optimizer'}, r'no module named'),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(config(**settings), schedule, draw(0), AXES)


def test_muon_without_a_matrix():
    params, axes = {'kernel': jnp.ones((4, 2))}, {'kernel': P('input', 'output')}
    with pytest.raises(ConfigError, match='no matrix for muon'):
        build(config('muon'), schedule, params, axes)


def test_an_optimizer_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / 'my_package').mkdir()
    (tmp_path / 'my_package' / 'powered.py').write_text(
        'from __future__ import annotations\n'
        'import jax, optax\n'
        'from bigjax.schema import PositiveInt\n'
        'def build(parts, *, power: PositiveInt = 3):\n'
        '    def raised(grads, params):\n'
        '        return jax.tree.map(lambda g: g**power, grads)\n'
        '    return optax.chain(optax.stateless(raised), parts.decay, parts.rate)\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    params, grad = draw(0), draw(1)
    optimizer = build(config('my_package.powered', power=2), schedule, params, AXES)
    update, _ = optimizer.update(grad, optimizer.init(params), params)
    assert_close(update, jax.tree.map(lambda g: -0.1 * g**2, grad))


@pytest.mark.parametrize('name', ['muon', 'lamb', 'lars', 'adafactor', 'sm3', 'novograd'])
def test_experts_are_matrices_of_their_own(name):
    """Of each layer of a stack, [layers, experts, 8, 4], and of each scale."""
    options = {'min_dim_size_to_factor': 2} if name == 'adafactor' else {}
    settings = config(name, learning_rate=0.1, weight_decay=0.1, **options)
    rng = np.random.default_rng(0)
    scales = 10.0 ** np.arange(6).reshape(2, 3, 1, 1)
    stacks = [jnp.asarray(scales * rng.normal(size=(2, 3, 8, 4)), jnp.float32) for _ in range(3)]
    apart = [
        {f'{layer}/{e}/kernel': stack[layer, e] for layer in range(2) for e in range(3)}
        for stack in stacks
    ]
    axes = {'kernel': P('layers', 'experts', 'embed', 'mlp')}
    single = build(settings, schedule, {'kernel': stacks[0]}, axes)
    separate = build(settings, schedule, apart[0], dict.fromkeys(apart[0], P('embed', 'mlp')))
    found = []
    for optimizer, (params, *grads) in (
        (single, [{'kernel': stack} for stack in stacks]),
        (separate, apart),
    ):
        found.append(train(optimizer, params, optimizer.init(params), grads)[0])
    for together, each in zip(*found, strict=True):
        for place, update in each.items():
            layer, e = map(int, place.split('/')[:2])
            ours = together['kernel'][layer, e]
            np.testing.assert_allclose(ours, update, rtol=0, atol=5e-6 * np.abs(update).max())
