import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas
from jax.extend import core

from bigjax.models import flops
from tests.models.test_transformer import TOKENS, build, gpt2

X = jax.ShapeDtypeStruct((4, 6), jnp.float32)
W = jax.ShapeDtypeStruct((6, 6), jnp.float32)
ONE = 2 * 4 * 6 * 6


@pytest.mark.parametrize(
    ('function', 'expected'),
    [
        (lambda x, w: x @ w, ONE),
        (jax.jit(lambda x, w: jnp.tanh(x @ w) @ w), 2 * ONE),
        (lambda x, w: lax.scan(lambda c, _: (c @ w, None), x, None, length=5)[0], 5 * ONE),
        (lambda x, w: lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w), 2 * ONE),
        (lambda x, w: jax.grad(lambda x: jnp.sum(jnp.sin(x @ w)))(x), 2 * ONE),
        (lambda x, w: jax.vmap(lambda row: row @ w)(x), ONE),
    ],
    ids=['product', 'jit', 'scan', 'cond', 'grad', 'vmap'],
)
def test_counts_by_hand(function, expected):
    assert flops.count(function, X, W) == flops.Count(expected)


def test_loops_of_unknown_length_say_so():
    def function(x, w):
        return lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w, x)

    assert flops.count(function, X, W).flops == ONE
    assert 'unknown length' in flops.count(function, X, W).notes[0]


def test_recomputation_counts():
    def loss(x, w, wrap):
        return jnp.sum(wrap(lambda x: jnp.sin(jnp.sin(x @ w) @ w))(x))

    plain = flops.count(lambda x, w: jax.grad(loss)(x, w, lambda f: f), X, W).flops
    remat = flops.count(lambda x, w: jax.grad(loss)(x, w, jax.checkpoint), X, W).flops
    assert plain == 4 * ONE
    assert remat > plain


@pytest.mark.parametrize(('stride', 'groups'), [(1, 1), (2, 1), (2, 3)])
def test_convolutions(stride, groups):
    def function(x, w):
        return lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            'SAME',
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            feature_group_count=groups,
        )

    x, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 8, 8, 3), (3, 3, 3 // groups, 6)))
    forward = 2 * (2 * (8 // stride) ** 2 * 6) * (3 * 3 * 3 // groups)
    assert flops.count(function, x, w).flops == forward
    back = jax.grad(lambda x, w: jnp.square(function(x, w)).sum(), argnums=(0, 1))
    assert flops.count(back, x, w).flops == 3 * forward


def test_every_device_of_a_mesh_counts():
    mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.sharding.PartitionSpec('data'), jax.sharding.PartitionSpec()
    split = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
    assert flops.count(split, X, W).flops == ONE


def test_every_program_of_a_kernel_counts():
    def kernel(x, w, out):
        out[...] = x[...] @ w[...]

    row = pallas.BlockSpec((1, 6), lambda i: (i, 0))
    whole = pallas.BlockSpec((6, 6), lambda i: (0, 0))
    product = pallas.pallas_call(kernel, X, grid=(4,), in_specs=[row, whole], out_specs=row)
    assert flops.count(product, X, W).flops == ONE


def test_functions_with_derivatives_of_their_own():
    product = jax.custom_vjp(jnp.matmul)
    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    assert flops.count(product, X, W).flops == ONE
    back = jax.grad(lambda x, w: product(x, w).sum(), argnums=(0, 1))
    assert flops.count(back, X, W).flops == 3 * ONE


def test_fused_attention_counts_its_products():
    """cuDNN's primitives do not trace without a GPU: bare ones of the same name and operands."""
    query, key = (jax.ShapeDtypeStruct((2, length, 4, 8), jnp.bfloat16) for length in (6, 10))
    for name, products in (('fwd', 2), ('bwd', 5)):
        primitive = core.Primitive(f'dot_product_attention_{name}_wrapper')
        primitive.def_abstract_eval(lambda query, key, value: query)
        found = flops.count(primitive.bind, query, key, key)
        assert found.flops == products * 2 * (2 * 4 * 6 * 10 * 8)


def test_gpt2_agrees_with_the_literature():
    model = gpt2(bias=False, attention_implementation='dense')
    tokens = jax.ShapeDtypeStruct((1, 1024), jnp.int32)
    variables = model.abstract()

    def forward(params, tokens):
        return model.apply({'params': params}, tokens, train=False)[0]

    assert flops.count(forward, variables['params'], tokens).flops == 291_648_307_200
    both = flops.count(
        jax.grad(lambda params, tokens: forward(params, tokens).sum()), variables['params'], tokens
    )
    assert both.flops == 874_944_921_600
    counts = flops.parameter_counts(variables['params'], model.axes['params'], tied_head=True)
    assert counts.total == 124_337_664
    assert flops.palm(counts.without_lookups, 12, 768, 1024, 1024) == 875_062_886_400


def forward_flops(model, tokens):
    def forward(variables, tokens):
        return model.apply(variables, tokens, train=False)[0]

    return flops.count(forward, model.abstract(), tokens).flops


def test_scanned_layers_count_like_unrolled_ones():
    one, other = (forward_flops(build(layers=3, scan=scan), TOKENS) for scan in (True, False))
    assert one == other


def test_parameters_by_convention():
    """Width 16, 2 layers, MLP 24, 8 positions, 11 tokens."""
    matrices = 2 * (4 * 16 * 16 + 2 * 16 * 24)
    vectors, table, positions = 5 * 16, 11 * 16, 8 * 16
    for tied, scan in ((True, False), (False, True)):
        model = build(bias=False, norm='rms', tied=tied, scan=scan)
        found = flops.parameter_counts(model.abstract()['params'], model.axes['params'], tied)
        assert found == flops.ParameterCounts(
            total=matrices + vectors + positions + table * (1 if tied else 2),
            nonembedding=matrices + vectors,
            matmul=matrices + table,
            without_lookups=matrices + vectors + table,
            active=matrices + table,
        )


def test_a_token_meets_its_own_experts_only():
    """2 of 4 experts, a router each layer: what 6 N counts, dropless and with room for all."""
    found = {}
    for capacity in (None, 1.0):
        model = build(bias=False, norm='rms', experts=4, capacity_factor=capacity)
        found[capacity] = forward_flops(model, TOKENS)
        counts = flops.parameter_counts(model.abstract()['params'], model.axes['params'], True, 2)
        dense, expert = 2 * 4 * 16 * 16 + 11 * 16, 2 * 2 * 16 * 24
        assert counts.matmul == dense + 4 * expert + 2 * 16 * 4
        assert counts.active == dense + 2 * expert + 2 * 16 * 4
    attention = forward_flops(build(bias=False, norm='rms', mlp=1), TOKENS) - 2 * 16 * (
        dense + 2 * 2 * 16
    )
    assert found[None] == found[1.0] == 2 * 16 * counts.active + attention


def test_ragged_products_count_in_the_backward_pass_too():
    sizes, stack = jax.ShapeDtypeStruct((3,), jnp.int32), jax.ShapeDtypeStruct((3, 6, 6), X.dtype)
    assert flops.count(lax.ragged_dot, X, stack, sizes).flops == ONE
    back = jax.grad(lambda x, w, sizes: lax.ragged_dot(x, w, sizes).sum(), argnums=(0, 1))
    assert flops.count(back, X, stack, sizes).flops == 3 * ONE


def test_formulas():
    assert flops.six_n(10, 7) == 420
    assert flops.palm(10, 2, 4, 8, tokens=3) == (60 + 12 * 2 * 4 * 8) * 3
    assert flops.palm(10, 2, 4, 8, tokens=3, causal=True) == (60 + 6 * 2 * 4 * 8) * 3


def test_chinchilla_is_our_count_with_the_embedding_and_softmax():
    sizes = {'layers': 3, 'width': 16, 'mlp': 24, 'heads': 4}
    ours = forward_flops(build(**sizes), TOKENS[:1])
    length, vocabulary = 8, 11
    extra = 2 * length * vocabulary * 16 + 3 * (3 * 4 * length**2)
    found = flops.chinchilla(**sizes, vocabulary=vocabulary, context=length, tokens=5 * length)
    assert found == 5 * 3 * (ours + extra)
