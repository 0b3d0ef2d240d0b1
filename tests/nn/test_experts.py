"""Against a loop over tokens in float64; and the same numbers on every mesh."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy.special import erf

from bigjax.config import MeshConfig
from bigjax.nn import experts
from bigjax.nn.blocks import Config
from bigjax.nn.experts import Experts
from bigjax.nn.params import logical_axes, unbox
from bigjax.sharding import rules
from bigjax.sharding.mesh import batch_sharding, make_mesh
from tests.nn.oracles import sigmoid

B, T, D, F, E = 8, 6, 4, 8, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, D)).astype(np.float32)
REAL = np.arange(T) < RNG.integers(1, T + 1, size=(B, 1))
COLLECTIONS = ('losses', 'diagnostics')
MESHES = [
    {},
    {'expert': 8},
    {'expert': 4, 'fsdp': 2},
    {'expert': 2, 'fsdp': 2, 'tensor': 2},
    {'expert': 2, 'context': 2, 'tensor': 2},
]


def layer(**options):
    settings = {'experts': E, 'per_token': 2, 'features': F, 'activation': 'swiglu'}
    return Experts(**{**settings, 'balance': 0.5, 'z': 0.25, **options})


def variables(module, seed=1):
    """Random everywhere, and routers with clear favourites."""
    rng = np.random.default_rng(seed)
    boxed = jax.eval_shape(module.init, jax.random.key(0), X)
    shapes = unbox(boxed)['params']
    params = {name: rng.normal(size=leaf.shape) for name, leaf in sorted(shapes.items())}
    params['router_kernel'] *= 2
    return jax.tree.map(np.float32, params), logical_axes(boxed)['params']


def loop(module, params, x, real):
    """y [B, T, D], the layer's own losses [B], and the sums of a `Traffic`."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    count, k = module.experts, module.per_token
    activate = {
        'swiglu': lambda v: v * sigmoid(v),
        'gelu': lambda v: v * (1 + erf(v / np.sqrt(2))) / 2,
    }[module.activation]

    def mlp(e, v):
        linear = {
            name: lambda u, name=name: (
                u @ p[f'{name}_kernel'][e] + p.get(f'{name}_bias', np.zeros((count, 1)))[e]
            )
            for name in ('gate', 'dense', 'out')
        }
        if module.activation == 'swiglu':
            return linear['out'](activate(linear['gate'](v)) * linear['dense'](v))
        return linear['out'](activate(linear['dense'](v)))

    y, losses = np.zeros(x.shape), np.zeros(len(x))
    sums = dict.fromkeys(('tokens', 'dropped', 'entropy', 'balance', 'z'), 0.0)
    load = np.zeros(count)
    places = np.inf
    if module.capacity_factor is not None:
        places = np.ceil(module.capacity_factor * k * x.shape[1] / count)
    for b in range(len(x)):
        taken, chances, squares = np.zeros(count), [], []
        for t in np.flatnonzero(real[b]):
            logits = x[b, t].astype(np.float64) @ p['router_kernel']
            chance = np.exp(logits) / np.exp(logits).sum()
            chances.append(chance)
            squares.append(np.log(np.exp(logits).sum()) ** 2)
            best = np.argsort(-chance, kind='stable')[:k]
            share = chance[best] / (chance[best].sum() if k > 1 else 1)
            for e, weight in zip(best, share, strict=True):
                taken[e] += 1
                if taken[e] <= places:
                    y[b, t] += weight * mlp(e, x[b, t])
                else:
                    sums['dropped'] += 1
        n = len(chances)
        balance = count * (taken / (k * n)) @ np.mean(chances, 0)
        losses[b] = module.balance * balance + module.z * np.mean(squares)
        sums['tokens'] += n
        sums['entropy'] -= np.sum(chances * np.log(chances))
        sums['balance'] += n * balance
        sums['z'] += np.sum(squares)
        load += taken
    return y, losses, {**sums, 'load': load}


def run(module, params, x=X, real=REAL):
    y, sown = module.apply({'params': params}, x, real, mutable=COLLECTIONS)
    return y, sown['losses']['router'][0], sown['diagnostics']['router'][0]


@pytest.mark.parametrize('capacity', [None, 0.5, 1.25, 10.0])
@pytest.mark.parametrize(
    'options',
    [
        {},
        {'use_bias': False, 'per_token': 1},
        {'activation': 'gelu', 'per_token': 3, 'experts': 4},
    ],
    ids=['gated', 'one', 'three'],
)
def test_a_loop_over_tokens(options, capacity):
    module = layer(**options, capacity_factor=capacity)
    params, _ = variables(module)
    y, losses, traffic = run(module, params)
    want, want_losses, sums = loop(module, params, X, REAL)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    for name, value in sums.items():
        np.testing.assert_allclose(getattr(traffic, name), value, rtol=1e-5, err_msg=name)
    assert sums['dropped'] > 0 if capacity == 0.5 else capacity == 1.25 or not sums['dropped']
    found = experts.metrics({'block_0': {'experts': {'router': (traffic,)}}})
    assert found['router_load'] == pytest.approx(sums['load'].max() / sums['load'].mean())
    choices = sums['tokens'] * module.per_token
    assert found['router_dropped'] == pytest.approx(sums['dropped'] / choices)
    for name in ('entropy', 'balance', 'z'):
        assert found[f'router_{name}'] == pytest.approx(sums[name] / sums['tokens'], rel=1e-5)


@pytest.mark.parametrize('capacity', [None, 0.5])
def test_gradients_are_the_slopes_of_the_loop(capacity):
    module = layer(capacity_factor=capacity, per_token=2, experts=4)
    params, _ = variables(module)
    weigh = RNG.normal(size=X.shape)

    def ours(params, x):
        y, losses, _ = run(module, params, x)
        return jnp.sum(y * weigh.astype(np.float32)) + losses.sum()

    def theirs(params, x):
        y, losses, _ = loop(module, params, x, REAL)
        return np.sum(y * weigh) + losses.sum()

    gradients = jax.grad(ours, (0, 1))(params, X)
    exact = jax.tree.map(np.float64, (params, X))
    step = 1e-6
    for gradient, values in zip(jax.tree.leaves(gradients), jax.tree.leaves(exact), strict=True):
        for at in RNG.integers(values.size, size=6):
            place = np.unravel_index(at, values.shape)
            middle, found = values[place], []
            for shift in (step, -step):
                values[place] = middle + shift
                found.append(theirs(*exact))
            values[place] = middle
            slope = (found[0] - found[1]) / (2 * step)
            assert gradient[place] == pytest.approx(slope, rel=2e-3, abs=2e-3)


def test_equal_experts_are_one():
    """With room for all; one expert of one is the MLP itself."""
    for count, k in ((4, 2), (4, 4), (1, 1)):
        for capacity in (None, float(count)):
            module = layer(experts=count, per_token=k, activation='gelu', capacity_factor=capacity)
            params, _ = variables(module)
            one = {name: leaf[0] for name, leaf in params.items() if name != 'router_kernel'}
            equal = {name: np.stack([leaf] * count) for name, leaf in one.items()}
            y, _, _ = run(module, {**params, **equal}, real=None)
            hidden = X @ one['dense_kernel'] + one['dense_bias']
            want = hidden * (1 + erf(hidden / np.sqrt(2))) / 2 @ one['out_kernel'] + one['out_bias']
            np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


def test_the_past_does_not_depend_on_the_future():
    module = layer(capacity_factor=0.5, experts=2, per_token=2)
    params, _ = variables(module)
    whole, _, _ = run(module, params, real=None)
    changed, _, _ = run(module, params, np.concatenate([X[:, :4], -X[:, 4:]], 1), real=None)
    np.testing.assert_array_equal(whole[:, :4], changed[:, :4])


def test_the_router_is_float32_whatever_the_rest():
    module = layer(dtype=jnp.bfloat16, capacity_factor=None)
    params, _ = variables(module)
    y, losses, _ = run(module, params)
    assert y.dtype == jnp.bfloat16
    want, want_losses, _ = loop(module, params, X, REAL)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    error = np.abs(y - want)
    assert error.max() < 0.03 * np.abs(want).max()


def test_every_expert_is_drawn_as_a_matrix_of_its_own():
    module = layer(features=512, experts=3)
    params = unbox(module.init(jax.random.key(0), np.zeros((1, 2, 128), np.float32)))['params']
    for name, fan_in in (('gate', 128), ('dense', 128), ('out', 512)):
        kernel = np.asarray(params[f'{name}_kernel'])
        np.testing.assert_allclose(kernel.std((1, 2)), fan_in**-0.5, rtol=0.03)
        assert not np.allclose(kernel[0], kernel[1])


def test_parameters_name_their_axes():
    _, axes = variables(layer())
    assert axes['gate_kernel'] == axes['dense_kernel'] == P('experts', 'embed', 'mlp')
    assert axes['out_kernel'] == P('experts', 'mlp', 'embed')
    assert (axes['dense_bias'], axes['out_bias']) == (P('experts', 'mlp'), P('experts', 'embed'))
    assert axes['router_kernel'] == P('embed', 'router')


def on_mesh(sizes, module, params, axes):
    """Value, gradients and compiled text of a loss on that mesh; on one device for None."""

    def loss(params, x):
        y, losses, traffic = run(module, params, x)
        return jnp.sum(y**2) + losses.sum(), traffic

    function = jax.value_and_grad(loss, (0, 1), has_aux=True)
    if sizes is None:
        return *jax.jit(function)(params, X), ''
    mesh = make_mesh(MeshConfig(**sizes))
    shardings, _ = rules.parameter_shardings(axes, params, mesh)
    places = (shardings, batch_sharding(mesh))
    with jax.set_mesh(mesh):
        given = jax.device_put((params, X), places)
        program = jax.jit(function, out_shardings=(None, places)).lower(*given).compile()
        return *program(*given), program.as_text()


@pytest.mark.parametrize('capacity', [None, 0.75])
def test_every_mesh_gives_the_numbers_of_one_device(capacity):
    module = layer(capacity_factor=capacity)
    params, axes = variables(module)
    (want, traffic), wanted, _ = on_mesh(None, module, params, axes)
    for sizes in MESHES:
        (found, counted), gradients, text = on_mesh(sizes, module, params, axes)
        np.testing.assert_allclose(found, want, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), counted, traffic)
        for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=str(sizes))
        parts = sizes.get('expert', 1)
        kernel = gradients[0]['out_kernel']
        assert kernel.sharding.shard_shape(kernel.shape)[0] == E // parts
        moves = re.findall(r'all-to-all\(', text)
        assert bool(moves) == (capacity is not None and parts > 1)
        if capacity is not None:
            assert_nothing_is_whole(text, places=2)


def assert_nothing_is_whole(text, places):
    """No array of the program has all rows with a width, or the places of all rows of an expert."""
    shapes = {tuple(map(int, found.split(','))) for found in re.findall(r'\[([\d,]+)\]', text)}
    assert not {(B, T, D), (B, 2 * T, D), (E, B, places, D), (B, E, places, D)} & shapes
    assert not {(E, D, F), (E, F, D)} & shapes or 'all-to-all' not in text


def test_rows_that_the_mesh_does_not_divide():
    module = layer(capacity_factor=None)
    params, axes = variables(module)
    want, _, _ = run(module, params, X[:3], REAL[:3])
    mesh = make_mesh(MeshConfig(expert=4, tensor=2))
    with jax.set_mesh(mesh):
        given = jax.device_put(params, rules.parameter_shardings(axes, params, mesh)[0])
        found = jax.jit(lambda params: run(module, params, X[:3], REAL[:3])[0])(given)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_more_choices_than_experts_are_refused():
    with pytest.raises(ValueError, match='experts_per_token=3 is more than experts=2; change one'):
        Config(experts=2, experts_per_token=3)
