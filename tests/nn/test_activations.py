from math import erf, exp, pi, sqrt, tanh
from typing import get_args

import jax
import numpy as np
import pytest

from bigjax.nn.activations import ACTIVATIONS, Activation, is_gated

POINTS = np.array([-6.0, -1.3, -0.2, 0.0, 0.4, 1.7, 5.0])


def closed_form(name, x):
    phi = (1 + erf(x / sqrt(2))) / 2
    sigmoid = 1 / (1 + exp(-x))
    return {
        'sigmoid': sigmoid,
        'tanh': tanh(x),
        'relu': max(x, 0.0),
        'gelu': x * phi,
        'gelu_tanh': x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2,
        'silu': x * sigmoid,
        'swiglu': x * sigmoid,  # of the gate
        'geglu': x * phi,
    }[name]


@pytest.mark.parametrize('name', sorted(ACTIVATIONS))
def test_closed_form(name):
    got = ACTIVATIONS[name](jax.numpy.asarray(POINTS, jax.numpy.float32))
    np.testing.assert_allclose(got, [closed_form(name, x) for x in POINTS], rtol=1e-5, atol=1e-6)


def test_names_of_configs_are_the_table():
    assert set(get_args(Activation)) == set(ACTIVATIONS)
    assert {name for name in ACTIVATIONS if is_gated(name)} == {'swiglu', 'geglu'}
