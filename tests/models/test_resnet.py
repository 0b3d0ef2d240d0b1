import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import schema
from bigjax.errors import ConfigError
from bigjax.models import resnet
from tests.models import checks
from tests.nn import oracles

X = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)


def build(row=X.shape[1:], outputs=10, dtype=jnp.float32, **fields):
    config = schema.build(resnet.Config, fields, 'config.model')
    return resnet.build(config, jax.ShapeDtypeStruct((2, *row), jnp.float32), outputs, dtype)


@pytest.mark.parametrize(
    ('depth', 'parameters'), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)]
)
def test_parameters_as_published(depth, parameters):
    """The counts of torchvision's resnet18, resnet34 and resnet50."""
    model = build((224, 224, 3), 1000, depth=depth)
    assert checks.count(model) == parameters
    checks.assert_axes_are_named(model)


def test_parameters_with_the_cifar_stem():
    assert checks.count(build((32, 32, 3), stem='cifar')) == 11_173_962


@pytest.mark.parametrize(('depth', 'stem'), [(18, 'cifar'), (50, 'imagenet')])
def test_against_numpy(depth, stem):
    model = build(depth=depth, stem=stem, width=2)
    variables = checks.random_variables(model)
    params, stats = (checks.to_numpy(variables[name]) for name in ('params', 'batch_stats'))

    def layer(path, name, stride, x):
        """A convolution and the batch norm after it, in evaluation."""
        p, s = (params[path], stats[path]) if path else (params, stats)
        norm_name = name.replace('conv', 'norm') if 'conv' in name else f'{name}_norm'
        y = oracles.conv(x, p[name]['kernel'], stride)
        y = (y - s[norm_name]['mean']) / np.sqrt(s[norm_name]['var'] + 1e-5)
        return y * p[norm_name]['scale'] + p[norm_name]['bias']

    def relu(x):
        return np.maximum(x, 0)

    x = relu(layer(None, 'stem', 2 if stem == 'imagenet' else 1, X))
    if stem == 'imagenet':
        x = oracles.max_pool(x, 3, 2, 1)
    for stage, blocks in enumerate({18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]):
        for i in range(blocks):
            path, stride = f'stage_{stage}_block_{i}', 2 if stage and not i else 1
            if depth == 18:
                y = relu(layer(path, 'conv_0', stride, x))
                y = layer(path, 'conv_1', 1, y)
            else:
                y = relu(layer(path, 'conv_0', 1, x))
                y = relu(layer(path, 'conv_1', stride, y))
                y = layer(path, 'conv_2', 1, y)
            shortcut = layer(path, 'shortcut', stride, x) if x.shape != y.shape else x
            x = relu(shortcut + y)
    want = x.mean((1, 2)) @ params['read_out']['kernel'] + params['read_out']['bias']
    assert (np.ptp(want, axis=0) > 0.1 * np.abs(want).max()).any()  # the two images differ
    got = checks.outputs(model, variables, X)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


def test_gradients_reach_all_parameters():
    fields = {'stem': 'cifar', 'width': 4, 'norm': 'group', 'groups': 2, 'stochastic_depth': 0.1}
    model = build((8, 8, 3), **fields)
    checks.assert_axes_are_named(model)
    checks.assert_gradients_reach_all_parameters(model, X[:, :8, :8])


@pytest.mark.parametrize('zero_init', [True, False])
def test_blocks_start_as_the_identity(zero_init):
    model = build(stem='cifar', width=2, zero_init=zero_init)

    @jax.jit
    def first_scales():
        params = model.init(jax.random.key(0))['params']
        return {
            (block, norm): params[block][norm]['scale']
            for block in params
            if block.startswith('stage')
            for norm in params[block]
            if 'norm' in norm
        }

    zeros = {name for name, scale in first_scales().items() if not scale.any()}
    last = {(f'stage_{stage}_block_{i}', 'norm_1') for stage in range(4) for i in range(2)}
    assert zeros == (last if zero_init else set())


def test_stochastic_depth_grows_to_its_rate(monkeypatch):
    """Seen by its calls: the rate of each block is a fact of the architecture, not of an output."""
    rates = []

    class Recorded(resnet.StochasticDepth):
        def __call__(self, branch, train):
            rates.append(self.rate)
            return super().__call__(branch, train)

    monkeypatch.setattr(resnet, 'StochasticDepth', Recorded)
    build(stem='cifar', width=2, stochastic_depth=0.4).abstract()
    np.testing.assert_allclose(rates[:8], 0.4 * np.arange(1, 9) / 8)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'row': (30,)}, r'config.model.name: resnet expects images .* got rows of shape \(30,\)'),
        ({'depth': 101}, 'config.model.depth: expected one of 18, 34, 50, got 101'),
        ({'norm': 'group', 'width': 16}, 'divisible by 32 groups, got 16'),
        ({'stem': 'cifer'}, "config.model.stem: .* did you mean 'cifar'"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(**fields)
