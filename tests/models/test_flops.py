import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bigjax.models import flops
from tests.models.test_transformer import build, gpt2

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


def test_convolution():
    def function(x, w):
        return lax.conv_general_dilated(
            x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )

    x, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 8, 8, 3), (3, 3, 3, 5)))
    assert flops.count(function, x, w).flops == 2 * 2 * 8 * 8 * 5 * 3 * 3 * 3


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


def test_conventions_are_kept_apart():
    model = build()
    counts = flops.parameter_counts(model.abstract()['params'], model.axes['params'], True)
    assert max(counts.nonembedding, counts.matmul) < counts.without_lookups < counts.total
    assert flops.six_n(10, 7) == 420
    causal, full = (flops.palm(10, 2, 4, 8, 3, causal=c) for c in (True, False))
    assert full - 180 == 2 * (causal - 180) == 12 * 2 * 4 * 8 * 3
    assert flops.chinchilla(1, 2, 8, 1, 5, 4, 8) == 3 * 2 * (
        2 * 2 * 4 * 5 * 2 + 8 * 4 * 4 + 4 * 16 * 2 + 3 * 16 + 4 * 4 * 2 * 8
    )
    assert np.isfinite(counts.total)
