"""What every model promises, whatever it computes."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.config import MeshConfig
from bigjax.sharding import rules
from bigjax.sharding.mesh import batch_sharding, make_mesh


def random_variables(model, seed=0):
    """Random values in every leaf, so that a bias or a running average that is left out shows."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        values = rng.normal(size=leaf.shape)
        if leaf.ndim > 1:  # a kernel: keep the size of activations, so that inputs show in outputs
            values *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
        others = {'scale': 1 + 0.1 * values, 'var': 1 + 0.1 * values**2, 'bias': 0.1 * values}
        return jnp.asarray(others.get(name, values), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, model.abstract())


def to_numpy(variables):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)


def outputs(model, variables, inputs):
    """In evaluation."""
    apply = jax.jit(lambda variables, inputs: model.apply(variables, inputs, train=False)[0])
    return np.asarray(apply(variables, inputs))


def noise_sources(model, inputs, draw='bernoulli'):
    """How many random draws training makes, by that function of jax.random."""

    def train(variables, key):
        return model.apply(variables, inputs, train=True, rngs={'dropout': key})[0]

    with mock.patch.object(jax.random, draw, wraps=getattr(jax.random, draw)) as draws:
        jax.eval_shape(train, model.abstract(), jax.random.key(0))
    return draws.call_count


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(model.abstract()['params']))


def assert_axes_are_named(model):
    def check(shape, spec):
        assert len(spec) == len(shape.shape)
        assert all(isinstance(name, str) for name in spec)

    jax.tree.map(check, model.abstract()['params'], model.axes['params'])
    jax.tree.map(lambda *_: None, model.abstract(), model.axes)  # the same structure throughout


def gradients(model, variables, inputs, out_shardings=None):
    """Of a sum of squares in training, by parameter; outputs must be float32."""
    rest = {name: tree for name, tree in variables.items() if name != 'params'}

    def compute(params, rest, inputs):
        def loss(params):
            rngs = {'dropout': jax.random.key(1)}
            y, changed = model.apply({'params': params, **rest}, inputs, train=True, rngs=rngs)
            assert y.dtype == jnp.float32
            assert changed.keys() == rest.keys()
            return jnp.square(y).mean()

        return jax.grad(loss)(params)

    compute = jax.jit(compute, out_shardings=out_shardings)
    return compute(variables['params'], rest, inputs)


def assert_gradients_reach_all_parameters(model, inputs):
    found = gradients(model, random_variables(model), inputs)
    for path, gradient in jax.tree_util.tree_leaves_with_path(found):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


def assert_gradients_survive_sharding(model, inputs):
    """A 2x2x2 mesh gives the gradients of one device, and does split parameters over it."""
    variables = random_variables(model)
    want = gradients(model, variables, inputs)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings, _ = rules.parameter_shardings(model.axes, model.abstract(), mesh)
    assert any(not sharding.is_fully_replicated for sharding in jax.tree.leaves(shardings))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(variables, shardings)
        inputs = jax.device_put(inputs, batch_sharding(mesh))
        got = gradients(model, sharded, inputs, shardings['params'])

    def check(path, got, want):
        error, name = np.abs(got - want).max(), jax.tree_util.keystr(path)
        assert error <= 1e-4 * np.abs(want).max(), name

    jax.tree_util.tree_map_with_path(check, *jax.device_get((got, want)))
