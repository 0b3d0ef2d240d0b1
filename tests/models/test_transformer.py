import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import schema, trees
from bigjax.errors import ConfigError
from bigjax.models import transformer
from tests.models import checks

B, T, V = 2, 8, 11
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, V, size=(B, T)).astype(np.int32)
VECTORS = RNG.normal(size=(B, T, 3)).astype(np.float32)
TINY = {'layers': 2, 'width': 16, 'heads': 4, 'mlp': 24}


def build(inputs=TOKENS, outputs=V, dtype=jnp.float32, **options):
    config = schema.build(transformer.Config, {**TINY, **options}, 'config.model')
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    return transformer.build(config, shapes, outputs, dtype)


def influence(inputs=VECTORS, others=None, **options):
    """Bool [T, T]: whether output t of some channel changes with input s, by gradient."""
    options = {'head': 'tokens', 'tied': False, **options}
    given = {'vectors': inputs, **(others or {})}
    model = build(given, outputs=4, **options)
    variables = checks.random_variables(model)

    def run(vectors):
        return model.apply(variables, {**given, 'vectors': vectors}, train=False)[0][0]

    jacobian = jax.jacrev(run)(inputs)[:, :, 0]  # [T, 4, T, 3] of the first row
    return np.abs(np.asarray(jacobian)).max((1, 3)) > 1e-9


def test_causal_sees_the_past_and_bidirectional_everything():
    for positions in ('learned', 'rope', 'sinusoidal', 'none'):
        seen = influence(attention='causal', positions=positions)
        np.testing.assert_array_equal(seen, np.tri(T, dtype=bool))
    assert influence(attention='bidirectional').all()


@pytest.mark.parametrize('attention', ['causal', 'bidirectional'])
def test_a_window_reaches_so_far_a_layer(attention):
    distance = np.arange(T)[:, None] - np.arange(T)
    ahead = distance >= 0 if attention == 'causal' else np.ones((T, T), bool)
    for layers in (1, 2):
        seen = influence(attention=attention, window=3, layers=layers)
        np.testing.assert_array_equal(seen, (abs(distance) <= 2 * layers) & ahead)


def test_documents_do_not_see_each_other():
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0]] * B, np.int32)
    seen = influence(others={'segments': segments}, attention='bidirectional')
    same = segments[0][:, None] == segments[0]
    np.testing.assert_array_equal(seen[:7, :7], same[:7, :7])
    assert not seen[:7, 7].any()


@pytest.mark.parametrize('head', ['mean', 'first', 'last', 'tokens'])
def test_padding_changes_nothing(head):
    mask = np.arange(T) < np.array([[5], [8]])
    options = {'attention': 'bidirectional', 'head': head, 'vocab_size': V}
    inputs = {'tokens': TOKENS, 'mask': mask}
    model = build(inputs, **options)
    variables = checks.random_variables(model)
    other = {'tokens': np.where(mask, TOKENS, 3).astype(np.int32), 'mask': mask}
    one, two = (checks.outputs(model, variables, given) for given in (inputs, other))
    if head == 'tokens':
        one, two = one[mask], two[mask]
    np.testing.assert_allclose(one, two, atol=1e-6)
    short = {'tokens': TOKENS[:1, :5], 'mask': mask[:1, :5]}
    alone = checks.outputs(model, variables, short)
    np.testing.assert_allclose(alone.reshape(-1), one.reshape(-1)[: alone.size], atol=1e-5)


def test_unrolled_layers_are_the_stacked_ones():
    stacked, unrolled = build(scan=True), build(scan=False)
    variables = checks.random_variables(stacked)
    params = dict(variables['params'])
    blocks = params.pop('blocks')
    for layer in range(2):
        params[f'block_{layer}'] = jax.tree.map(lambda leaf, i=layer: leaf[i], blocks)
    one = checks.outputs(stacked, variables, TOKENS)
    np.testing.assert_allclose(one, checks.outputs(unrolled, {'params': params}, TOKENS), atol=1e-5)
    assert stacked.axes['params']['blocks']['mlp']['dense']['kernel'][0] == 'layers'


@pytest.mark.parametrize('scan', [True, False])
@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_remat_changes_the_program_and_not_the_gradients(remat, scan):
    plain, rematted = build(scan=scan), build(scan=scan, remat=remat)
    variables = checks.random_variables(plain)

    def loss(model):
        return lambda params: jnp.sum(model.apply({'params': params}, TOKENS, train=False)[0] ** 2)

    one, two = (jax.grad(loss(model))(variables['params']) for model in (plain, rematted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), one, two)
    programs = [
        str(jax.make_jaxpr(jax.grad(loss(model)))(variables['params']))
        for model in (plain, rematted)
    ]
    assert programs[1].count('remat') > programs[0].count('remat') == 0


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'kv_heads': 2, 'norm': 'rms', 'activation': 'swiglu', 'positions': 'rope', 'bias': False},
        {'norm_position': 'post', 'attention': 'bidirectional', 'head': 'first', 'vocab_size': V},
    ],
    ids=['gpt', 'llama', 'bert'],
)
def test_families(options):
    model = build(**options)
    checks.assert_axes_are_named(model)
    variables = checks.random_variables(model)
    grads = checks.gradients(model, variables, TOKENS)
    for name, grad in zip(trees.names(grads), jax.tree.leaves(grads), strict=True):
        assert np.abs(grad).max() > 0, name
    exact = checks.outputs(model, variables, TOKENS)
    rough = checks.outputs(build(dtype=jnp.bfloat16, **options), variables, TOKENS)
    assert rough.dtype == np.float32
    np.testing.assert_allclose(rough, exact, atol=0.1 * np.abs(exact).max())


def test_dropout_is_for_training():
    model = build(dropout=0.5, stochastic_depth=0.5)
    variables = checks.random_variables(model)
    assert checks.noise_sources(model, TOKENS) > 0
    assert checks.noise_sources(build(), TOKENS) == 0
    train = [
        model.apply(variables, TOKENS, train=True, rngs={'dropout': jax.random.key(i)})[0]
        for i in range(2)
    ]
    assert np.abs(train[0] - train[1]).max() > 1e-3


def gpt2(**options):
    fields = {'layers': 12, 'width': 768, 'heads': 12, 'mlp': 3072, **options}
    return build(np.zeros((1, 1024), np.int32), outputs=50257, **fields)


def test_parameter_counts_of_gpt2():
    assert checks.count(gpt2()) == 124_439_808
    assert checks.count(gpt2(bias=False)) == 124_337_664


def test_the_small_encoder_of_the_tutorials():
    options = {'layers': 1, 'width': 128, 'heads': 2, 'mlp': 64, 'vocab_size': V}
    model = build(outputs=1, attention='bidirectional', head='mean', **options)
    variables = model.init(jax.random.key(0))
    assert checks.outputs(model, variables, TOKENS).shape == (B, 1)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'width': 18}, 'width=18 is not divisible by heads=4'),
        ({'kv_heads': 3}, 'heads=4 is not a multiple of kv_heads=3'),
        ({'max_length': 4}, 'expected at least 8'),
        ({'head': 'mean'}, 'expected the number of token ids'),
        ({'head': 'first', 'vocab_size': V}, "use 'last'"),
        ({'vocab_size': 5}, 'expected 11'),
        ({'width': 12, 'positions': 'rope'}, 'even head size'),
        ({'attention_implementation': 'cudnn'}, 'expects a GPU'),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_inputs_that_are_no_sequences():
    with pytest.raises(ConfigError, match='expects token ids'):
        build(np.zeros((2, 3, 4, 5), np.float32))
    with pytest.raises(ConfigError, match="an input 'tokns'"):
        build({'tokns': TOKENS})
