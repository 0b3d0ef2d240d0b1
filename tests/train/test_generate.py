import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.models.core import Model
from bigjax.train.generate import continuations, sample

V = 7


def counting() -> Model:
    """After token i comes i + 1, almost surely, whatever lies further on."""

    def apply(variables, tokens, train):
        return 100.0 * jax.nn.one_hot((tokens + variables['params']['step']) % V, V), {}

    return Model(lambda rng: {'params': {'step': jnp.int32(1)}}, apply, None)


def test_what_is_written_is_read_again():
    variables = counting().init(jax.random.key(0))
    written = sample(counting(), variables, jnp.array([[2, 3], [0, 6]]), 5, jax.random.key(0))
    assert written.tolist() == [[4, 5, 6, 0, 1], [0, 1, 2, 3, 4]]


def test_samples_follow_the_softened_chances():
    logits = np.array([0.0, 1.0, 2.0], np.float32)

    def apply(variables, tokens, train):
        return jnp.broadcast_to(logits, (*tokens.shape, 3)), {}

    model = Model(lambda rng: {}, apply, None)
    written = sample(model, {}, jnp.zeros((4000, 1), jnp.int32), 2, jax.random.key(1))
    expected = np.exp(logits / 0.8) / np.exp(logits / 0.8).sum()
    for column in np.asarray(written).T:
        np.testing.assert_allclose(np.bincount(column) / 4000, expected, atol=0.03)


@pytest.mark.parametrize('decode', [None, lambda ids: '-'.join(map(str, ids))])
def test_continuations_show_prompt_and_text(decode):
    rows = {'inputs': np.array([[1, 2, 3, 4]] * 5, np.int32)}
    model = counting()
    shown = continuations(model, model.init(jax.random.key(0)), rows, decode)
    joined = ' ' if decode is None else '-'
    assert len(shown) == 3
    assert shown[0]['input'] == {'kind': 'text', 'text': joined.join('12')}
    assert shown[0]['prediction'] == joined.join('3456')
