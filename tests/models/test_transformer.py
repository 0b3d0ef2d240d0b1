import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from scipy.special import erf

from bigjax import schema, trees
from bigjax.errors import ConfigError
from bigjax.models import flops, transformer
from tests.models import checks
from tests.nn import oracles

B, T, V = 2, 8, 11
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, V, size=(B, T)).astype(np.int32)
VECTORS = RNG.normal(size=(B, T, 3)).astype(np.float32)
TINY = {'layers': 2, 'width': 16, 'heads': 4, 'mlp': 24}
FAMILIES = {
    'gpt': {},
    'llama': {
        'kv_heads': 2,
        'norm': 'rms',
        'activation': 'swiglu',
        'positions': 'rope',
        'bias': False,
        'tied': False,
    },
    'bert': {
        'norm_position': 'post',
        'attention': 'bidirectional',
        'head': 'first',
        'vocab_size': V,
    },
}


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


def test_a_stride_sees_its_own_stretch_and_every_stride_th_beyond():
    distance = np.arange(T)[:, None] - np.arange(T)
    for attention in ('causal', 'bidirectional'):
        seen = influence(attention=attention, stride=3, layers=1)
        want = (abs(distance) < 3) | (distance % 3 == 0)
        np.testing.assert_array_equal(
            seen, want & (np.tri(T, dtype=bool) | (attention != 'causal'))
        )


def test_soft_caps_bound_the_logits():
    model = build(logit_soft_cap=2.0, attention_soft_cap=1.0)
    plain = build()
    variables = jax.tree.map(lambda leaf: 20 * leaf, checks.random_variables(plain))
    capped, free = (
        checks.outputs(m, variables, TOKENS) for m in (build(logit_soft_cap=2.0), plain)
    )
    np.testing.assert_allclose(capped, 2 * np.tanh(free / 2), atol=1e-5)
    assert np.abs(free).max() > 2
    assert not np.allclose(checks.outputs(model, variables, TOKENS), capped, atol=1e-3)


def test_query_key_norm_makes_attention_blind_to_the_size_of_its_projections():
    model = build(query_key_norm=True, bias=False, norm='rms')
    variables = checks.random_variables(model)

    def scaled(path, leaf):
        name = jax.tree_util.keystr(path)
        return 7 * leaf if "['query']" in name or "['key']" in name else leaf

    larger = jax.tree_util.tree_map_with_path(scaled, variables)
    one, two = (checks.outputs(model, given, TOKENS) for given in (variables, larger))
    np.testing.assert_allclose(one, two, atol=1e-3)
    plain = build(bias=False, norm='rms')
    one, two = (checks.outputs(plain, given, TOKENS) for given in (variables, larger))
    assert np.abs(one - two).max() > 1e-2


def test_attention_dropout_is_of_training_only():
    model, plain = build(attention_dropout=0.3), build()
    variables = checks.random_variables(plain)
    assert checks.noise_sources(model, TOKENS, draw='split') == 2  # a key for each query
    assert checks.noise_sources(plain, TOKENS, draw='split') == 0
    want = checks.outputs(plain, variables, TOKENS)
    np.testing.assert_array_equal(checks.outputs(model, variables, TOKENS), want)


def test_one_position_can_be_read_alone():
    at = np.array([2, 5], np.int32)
    model = build({'tokens': TOKENS, 'at': at})
    variables = checks.random_variables(model)
    got = checks.outputs(model, variables, {'tokens': TOKENS, 'at': at})
    want = checks.outputs(model, variables, {'tokens': TOKENS})
    np.testing.assert_allclose(got[:, 0], want[[0, 1], at], atol=1e-6)


def test_a_table_with_spare_rows_gives_no_spare_logits():
    assert (
        checks.outputs(m := build(vocab_size=16), checks.random_variables(m), TOKENS).shape[-1] == V
    )


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


@pytest.mark.parametrize('remat', ['none', 'projections'])
def test_unrolled_layers_are_the_stacked_ones(remat):
    stacked, unrolled = build(scan=True, remat=remat), build(scan=False, remat=remat)
    variables = checks.random_variables(stacked)

    def unstack(params):
        blocks = {
            f'block_{layer}': jax.tree.map(lambda leaf, i=layer: leaf[i], params['blocks'])
            for layer in range(2)
        }
        return {name: params[name] for name in params if name != 'blocks'} | blocks

    def loss(model):
        return lambda params: jnp.mean(model.apply({'params': params}, TOKENS, train=False)[0] ** 2)

    one, slope = jax.value_and_grad(loss(stacked))(variables['params'])
    two, other = jax.value_and_grad(loss(unrolled))(unstack(variables['params']))
    assert float(one) == pytest.approx(float(two), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), unstack(slope), other
    )
    assert stacked.axes['params']['blocks']['mlp']['dense']['kernel'][0] == 'layers'


@pytest.mark.parametrize('scan', [True, False])
@pytest.mark.parametrize('remat', ['dots', 'projections', 'offload', 'full'])
def test_remat_changes_the_program_and_not_the_gradients(remat, scan):
    plain, rematted = build(scan=scan), build(scan=scan, remat=remat)
    variables = checks.random_variables(plain)

    def loss(model):
        return lambda params: jnp.sum(model.apply({'params': params}, TOKENS, train=False)[0] ** 2)

    one, two = (
        jax.jit(jax.value_and_grad(loss(model)))(variables['params']) for model in (plain, rematted)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), one, two)
    forward, done = (
        flops.count(function, variables['params']).flops
        for function in (loss(plain), jax.grad(loss(plain)))
    )
    redone = flops.count(jax.grad(loss(rematted)), variables['params']).flops - done
    attention = 2 * (2 * 2 * B * T * T * 16)
    read_out, last_of_a_block = 2 * B * T * 16 * V, 2 * (2 * B * T * 24 * 16)
    expected = {
        'dots': attention,
        'projections': attention + 2 * (2 * B * T * 16 * 24),
        'full': forward - read_out - last_of_a_block,
    }
    assert redone == expected.get(remat, expected['projections'])
    program = str(jax.make_jaxpr(jax.grad(loss(rematted)))(variables['params']))
    assert ('device_put' in program) == (remat == 'offload')


@pytest.mark.parametrize('scan', [True, False])
def test_each_remat_keeps_less_than_the_one_before(scan):
    def kept(remat):
        """Bytes that the forward pass hands to the backward pass."""
        model = build(scan=scan, remat=remat, bias=False)
        params = model.abstract()['params']

        def backward(params):
            return jax.vjp(lambda p: model.apply({'params': p}, TOKENS, train=False)[0], params)[1]

        return trees.num_bytes(jax.tree.leaves(jax.eval_shape(backward, params)))

    sizes = [kept(remat) for remat in ('none', 'dots', 'projections', 'full')]
    assert sizes == sorted(set(sizes), reverse=True)
    layer = 4 * B * T * 16  # bytes of one vector a position
    assert sizes[2] - sizes[3] == 2 * 4 * layer  # query, key, value, and out
    assert kept('offload') == sizes[2]


def reference(p, config, tokens):
    """The same model in numpy and float64."""

    def affine(x, p, axes=1):
        return np.tensordot(x, p['kernel'], axes) + p.get('bias', 0)

    def norm(x, p):
        if config.norm == 'layer':
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + config.norm_epsilon)
        return x * p['scale'] + p.get('bias', 0)

    def turn(x):
        half = x.shape[-1] // 2
        angles = np.arange(T)[:, None, None] * 10_000.0 ** (-np.arange(half) / half)
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag], -1)

    def attention(x, p):
        query, key, value = (affine(x, p[name]) for name in ('query', 'key', 'value'))
        if config.positions == 'rope':
            query, key = turn(query), turn(key)
        mixed = oracles.attention(query, key, value, causal=config.attention == 'causal')
        return affine(mixed, p['out'], 2)

    def mlp(x, p, p_out):
        hidden = affine(x, p['dense'])
        if config.activation == 'swiglu':
            gate = affine(x, p['gate'])
            hidden *= gate * oracles.sigmoid(gate)
        else:
            hidden *= (1 + erf(hidden / np.sqrt(2))) / 2
        return affine(hidden, p_out)

    def add(x, branch, p_norm):
        if config.norm_position == 'pre':
            return x + branch(norm(x, p_norm))
        return norm(x + branch(x), p_norm)

    x = p['embed']['embedding'][tokens]
    if config.positions == 'learned':
        x = x + p['positions']['embedding']
    for layer in range(config.layers):
        b = p[f'block_{layer}']
        x = add(x, lambda y, b=b: attention(y, b['attention']), b['attention_norm'])
        x = add(x, lambda y, b=b: mlp(y, b['mlp'], b['mlp_out']), b['mlp_norm'])
    if config.norm_position == 'pre':
        x = norm(x, p['final_norm'])
    if config.head == 'first':
        x = x[:, 0]
    return affine(x, p['read_out']) if 'read_out' in p else x @ p['embed']['embedding'].T


@pytest.mark.parametrize('family', FAMILIES)
def test_against_a_reference(family):
    options = FAMILIES[family]
    model = build(**options)
    variables = checks.random_variables(model)
    config = schema.build(transformer.Config, TINY | options, 'config.model')
    want = reference(checks.to_numpy(variables['params']), config, TOKENS)
    got = checks.outputs(model, variables, TOKENS)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)
    rough = checks.outputs(build(dtype=jnp.bfloat16, **options), variables, TOKENS)
    assert rough.dtype == np.float32
    np.testing.assert_allclose(rough, want, atol=0.04 * np.abs(want).max())
    assert (rough != got).any()


# Unless turned, the bias of keys adds the same to all logits of a query, and has no gradient.
@pytest.mark.parametrize(
    'options',
    [{'bias': False}, FAMILIES['llama'], FAMILIES['bert'] | {'positions': 'rope'}],
    ids=FAMILIES,
)
def test_gradients_reach_all_parameters(options):
    model = build(**options)
    checks.assert_axes_are_named(model)
    checks.assert_gradients_reach_all_parameters(model, TOKENS)


@pytest.mark.parametrize(
    'options',
    [
        {'layers': 1, 'positions': 'rope'},
        FAMILIES['llama'] | {'scan': True, 'remat': 'dots', 'dropout': 0.1},
    ],
    ids=['gpt', 'llama'],
)
def test_gradients_survive_sharding(options):
    rows = RNG.integers(0, 12, size=(8, T)).astype(np.int32)
    checks.assert_gradients_survive_sharding(build(rows, 12, **options), rows)


def test_axes_are_the_terms_of_the_rules():
    model = build(**FAMILIES['llama'])
    axes = model.axes['params']
    attention = {name: kernel['kernel'] for name, kernel in axes['block_0']['attention'].items()}
    assert attention == {
        'query': PartitionSpec('embed', 'heads', 'head_dim'),
        'key': PartitionSpec('embed', 'kv_heads', 'head_dim'),
        'value': PartitionSpec('embed', 'kv_heads', 'head_dim'),
        'out': PartitionSpec('heads', 'head_dim', 'embed'),
    }
    assert axes['block_0']['mlp_out']['kernel'] == PartitionSpec('mlp', 'embed')
    assert axes['embed']['embedding'] == PartitionSpec('vocab', 'embed')
    assert axes['read_out']['kernel'] == PartitionSpec('embed', 'vocab')
    assert build().axes['params']['positions']['embedding'] == PartitionSpec('position', 'embed')


def test_initial_values_are_those_of_gpt2():
    model = build(width=128, mlp=512, scan=True)
    block = jax.device_get(jax.jit(model.init)(jax.random.key(0)))['params']['blocks']
    for kernel in (block['attention']['query'], block['mlp']['dense']):
        np.testing.assert_allclose(kernel['kernel'].std(), 0.02, rtol=0.03)
    for kernel in (block['attention']['out'], block['mlp_out']):
        np.testing.assert_allclose(kernel['kernel'].std(), 0.02 / 2, rtol=0.03)
    assert not block['mlp_out']['bias'].any()
    assert (block['mlp_norm']['scale'] == 1).all()
    first, second = block['mlp_out']['kernel']
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02


@pytest.mark.parametrize('scan', [True, False])
def test_dropout_is_of_training_alone(scan):
    model = build(dropout=0.5, scan=scan)
    variables = checks.random_variables(model)
    quiet = checks.outputs(model, variables, TOKENS)
    np.testing.assert_array_equal(quiet, checks.outputs(build(scan=scan), variables, TOKENS))
    noisy = [
        model.apply(variables, TOKENS, train=True, rngs={'dropout': jax.random.key(k)})[0]
        for k in range(2)
    ]
    assert not np.allclose(noisy[0], noisy[1])
    assert not np.allclose(noisy[0], quiet)


def test_dropout_is_of_the_embedding_and_of_every_branch():
    assert checks.noise_sources(build(dropout=0.5), TOKENS) == 1 + 2 * 2
    assert checks.noise_sources(build(), TOKENS) == 0


@pytest.mark.parametrize('scan', [True, False])
def test_stochastic_depth_drops_branches_of_the_last_block(scan):
    """Two blocks: the first always stays; the second loses some of its two branches a row."""
    rows = np.repeat(TOKENS[:1], 32, axis=0)
    model = build(rows, stochastic_depth=0.5, scan=scan)
    variables = checks.random_variables(model)
    rngs = {'dropout': jax.random.key(0)}
    run = jax.jit(lambda v: model.apply(v, rows, train=True, rngs=rngs)[0])
    outcomes = np.unique(np.asarray(run(variables))[:, -1].round(4), axis=0)
    assert len(outcomes) == 4
    quiet = checks.outputs(model, variables, rows)
    np.testing.assert_array_equal(quiet, checks.outputs(build(rows, scan=scan), variables, rows))


@pytest.mark.parametrize('positions', ['learned', 'sinusoidal', 'rope'])
def test_packed_documents_are_as_if_alone(positions):
    packed = {
        'tokens': np.concatenate([TOKENS[:1, :3], TOKENS[1:, :5]], axis=1),
        'segments': np.array([[1] * 3 + [2] * 5], np.int32),
        'positions': np.array([[0, 1, 2, 0, 1, 2, 3, 4]], np.int32),
    }
    model = build(packed, positions=positions)
    variables = checks.random_variables(model)
    together = checks.outputs(model, variables, packed)
    for part, alone in ((np.s_[:, :3], TOKENS[:1, :3]), (np.s_[:, 3:], TOKENS[1:, :5])):
        found = checks.outputs(model, variables, alone)
        np.testing.assert_allclose(together[part], found, atol=1e-5)


@pytest.mark.parametrize('positions', ['learned', 'sinusoidal', 'rope'])
def test_positions_say_what_the_order_is(positions):
    order = np.array([5, 0, 7, 2, 1, 4, 3, 6])
    given = {'tokens': TOKENS, 'positions': np.tile(np.arange(T, dtype=np.int32), (B, 1))}
    model = build(given, positions=positions, attention='bidirectional')
    variables = checks.random_variables(model)
    straight = checks.outputs(model, variables, given)
    mixed = checks.outputs(model, variables, {name: x[:, order] for name, x in given.items()})
    np.testing.assert_allclose(mixed, straight[:, order], atol=1e-5)
    without = checks.outputs(model, variables, given | {'tokens': TOKENS[:, order]})
    assert not np.allclose(without, straight[:, order], atol=1e-3)


def test_block_by_block_attention_gives_the_same():
    variables = checks.random_variables(build())
    dense, chunked = (
        checks.outputs(build(attention_implementation=name), variables, TOKENS)
        for name in ('dense', 'chunked')
    )
    np.testing.assert_allclose(chunked, dense, atol=1e-5)


def gpt2(**options):
    fields = {'layers': 12, 'width': 768, 'heads': 12, 'mlp': 3072, **options}
    return build(np.zeros((1, 1024), np.int32), outputs=50257, **fields)


def test_parameter_counts_of_gpt2():
    assert checks.count(gpt2()) == 124_439_808
    assert checks.count(gpt2(bias=False)) == 124_337_664
    assert checks.count(gpt2(layers=48, width=1600, heads=25, mlp=6400)) == 1_557_611_200


def test_parameter_counts_of_llamas():
    llama = FAMILIES['llama']
    llama_7b = {'layers': 32, 'width': 4096, 'heads': 32, 'mlp': 11008, 'kv_heads': None}
    assert checks.count(build(outputs=32_000, **llama | llama_7b)) == 6_738_415_616
    smollm = {'layers': 30, 'width': 576, 'heads': 9, 'mlp': 1536, 'kv_heads': 3, 'tied': True}
    assert checks.count(build(outputs=49_152, **llama | smollm)) == 134_515_008


def test_the_small_encoder():
    options = {'layers': 1, 'width': 128, 'heads': 2, 'mlp': 64, 'vocab_size': V}
    model = build(outputs=1, attention='bidirectional', head='mean', **options)
    assert checks.outputs(model, checks.random_variables(model), TOKENS).shape == (B, 1)
    norms, attention, mlp = 3 * 2 * 128, 4 * (128 * 128 + 128), 2 * 128 * 64 + 64 + 128
    assert checks.count(model) == (V + T) * 128 + norms + attention + mlp + 128 + 1


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'width': 18}, 'width=18 is not divisible by heads=4'),
        ({'kv_heads': 3}, 'heads=4 is not a multiple of kv_heads=3'),
        ({'max_length': 4}, 'expected at least 8'),
        ({'head': 'mean'}, 'expected the number of token ids'),
        ({'head': 'first', 'vocab_size': V}, "use 'last'"),
        ({'vocab_size': 5}, 'expected at least 11'),
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
