import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding

from bigjax import trees
from bigjax.optim.moments import in_bfloat16, round_stochastically
from bigjax.optim.optimizers import OPTIMIZERS, build
from bigjax.optim.shardings import state_shardings
from tests.optim.test_optimizers import AXES, SPECS, config, draw, schedule, train

STEPS = 6
INITIAL = ('params0', 'x0', 'init_params', 'init_particles')
"""What Optax calls the parameters that a method began with."""


def total(*leaves):
    return np.sum(leaves, axis=0)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_all_methods_keep_half_and_move_nearly_alike(name):
    settings = config(name, learning_rate=0.1, clip=50.0)
    params, grads = draw(0), [draw(seed) for seed in range(1, 1 + STEPS)]
    optimizer = build(settings, schedule, params, AXES)
    half = in_bfloat16(optimizer, params)
    state = half.init(params)
    for path, leaf in zip(trees.names(state), jax.tree.leaves(state), strict=True):
        kept = leaf.ndim == 0 or any(part in INITIAL for part in path.split('/'))
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert leaf.dtype == (jnp.float32 if kept else jnp.bfloat16), path
    expected, _ = train(optimizer, params, optimizer.init(params), grads)
    found, _ = train(half, params, state, grads)
    moved, exact = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.tree.map(total, *steps))])
        for steps in (found, expected)
    )
    assert np.linalg.norm(moved - exact) < 0.05 * np.linalg.norm(exact)


def test_what_starts_from_the_parameters_stays():
    def init(params):
        return {
            'start': jax.tree.map(lambda p: 1.0 * p, params),
            'sum': optax.tree.zeros_like(params),
        }

    params = draw(0)
    own = optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))
    state = in_bfloat16(own, params).init(params).state
    assert {leaf.dtype for leaf in jax.tree.leaves(state['start'])} == {jnp.dtype('float32')}
    assert {leaf.dtype for leaf in jax.tree.leaves(state['sum'])} == {jnp.dtype('bfloat16')}


def test_memory_of_moments_is_half_on_every_device():
    params = draw(0)
    optimizer = build(config('adamw'), schedule, params, AXES)
    half = in_bfloat16(optimizer, params)
    devices = np.array(jax.devices()).reshape(2, 2, 2)
    mesh = Mesh(devices, ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3)
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)
    sharded = jax.device_put(params, places)

    def shard_bytes(optimizer):
        where = state_shardings(optimizer, params, places)
        state = jax.jit(optimizer.init, out_shardings=where)(sharded)
        arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in arrays)

    assert 2 * shard_bytes(half) == shard_bytes(optimizer) > 0
    grads = [draw(seed) for seed in (1, 2)]
    where = state_shardings(half, params, places)
    alone, _ = train(half, params, half.init(params), grads)
    state = jax.jit(half.init, out_shardings=where)(sharded)
    spread, _ = train(half, sharded, state, jax.device_put(grads, [places] * 2), (places, where))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), alone, spread)


def test_a_second_moment_decays_as_in_float32():
    """Nearest rounding keeps it where it is for ever."""
    params = {'kernel': jnp.ones((64, 64))}
    optimizer = optax.scale_by_adam(b2=0.999)
    states = {'exact': optimizer.init(params), 'half': in_bfloat16(optimizer, params).init(params)}
    updates = {'exact': optimizer.update, 'half': in_bfloat16(optimizer, params).update}
    for name, update in updates.items():
        step = jax.jit(update)
        for scale in [1.0, *[0.0] * 300]:
            grads = jax.tree.map(lambda p, s=scale: s * p, params)
            _, states[name] = step(grads, states[name])
    exact, half = states['exact'].nu['kernel'], states['half'].state.nu['kernel']
    expected = 0.001 * 0.999**300
    assert exact[0, 0] == pytest.approx(expected, rel=1e-5)
    assert half.astype(jnp.float32).mean() == pytest.approx(expected, rel=0.005)


def test_rounding_is_to_a_neighbour_and_right_on_average():
    x = jnp.full((200, 300), 1 + 2**-9)  # a quarter of the way from 1 to 1 + 2^-7
    once, again, other = (round_stochastically(x, jnp.int32(count)) for count in (1, 1, 2))
    assert set(np.unique(once.astype(jnp.float32))) == {1, 1 + 2**-7}
    assert (once != 1).mean() == pytest.approx(0.25, abs=0.01)
    assert (once == again).all()
    both = ((once != 1) & (other != 1)).mean()
    assert both == pytest.approx(0.25**2, abs=0.01)
    rows = np.asarray(once != 1)
    assert np.corrcoef(rows[:, 0], rows[:, 1])[0, 1] == pytest.approx(0, abs=0.3)
    kept = jnp.array([0.0, -1.5, jnp.inf, -jnp.inf, jnp.nan])
    np.testing.assert_array_equal(round_stochastically(kept, jnp.int32(3)).astype(float), kept)
