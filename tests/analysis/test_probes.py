import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from bigjax.analysis import probes
from bigjax.analysis.activations import activations
from bigjax.errors import ConfigError, DataError
from bigjax.models import mlp

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 6)).astype(np.float32)
CLASSES = (X @ RNG.normal(size=(6, 3)) + RNG.gumbel(size=(200, 3))).argmax(1)


@pytest.mark.parametrize('l2', [0.0, 3.0])
def test_ridge_is_that_of_scikit_learn(l2):
    targets = X @ RNG.normal(size=(6, 2)) + 5 + RNG.normal(size=(200, 2))
    probe, oracle = probes.fit_ridge(X, targets, l2), Ridge(alpha=l2).fit(X, targets)
    np.testing.assert_allclose(probe.kernel.T, oracle.coef_, atol=1e-5)
    np.testing.assert_allclose(probe(X), oracle.predict(X), atol=1e-4)


def test_ridge_of_more_features_than_rows_has_minimum_norm():
    x, y = RNG.normal(size=(5, 12)), RNG.normal(size=(5, 1))
    probe = probes.fit_ridge(x, y, 0.0)
    oracle = np.linalg.pinv(x - x.mean(0)) @ (y - y.mean(0))
    np.testing.assert_allclose(probe.kernel, oracle, atol=1e-5)


def test_logistic_is_that_of_scikit_learn():
    probe = probes.fit_logistic(X, CLASSES, l2=2.0, tolerance=1e-5)
    oracle = LogisticRegression(C=1 / 2.0, tol=1e-8, max_iter=1000).fit(X, CLASSES)
    np.testing.assert_allclose(jax.nn.softmax(probe(X)), oracle.predict_proba(X), atol=2e-3)
    np.testing.assert_allclose(probe.kernel.T, oracle.coef_, atol=5e-3)
    assert probes.accuracy(probe, X, CLASSES) == pytest.approx(oracle.score(X, CLASSES))


def test_a_probe_reads_a_hidden_layer():
    model = mlp.build(
        mlp.Config((16, 8)), jax.ShapeDtypeStruct((1, 6), jnp.float32), 3, jnp.float32
    )
    variables = model.init(jax.random.key(0))
    found = activations(model, variables, X, r'hidden_\d$')
    assert {name: value.shape for name, value in found.items()} == {
        'hidden_0': (200, 16),
        'hidden_1': (200, 8),
    }
    dense = variables['params']['hidden_0']['dense']
    by_hand = np.maximum(X @ np.asarray(dense['kernel']) + np.asarray(dense['bias']), 0)
    np.testing.assert_allclose(found['hidden_0'], by_hand, atol=1e-5)
    probe = probes.fit_logistic(found['hidden_0'], CLASSES)
    assert probes.accuracy(probe, found['hidden_0'], CLASSES) > 0.6
    with pytest.raises(ConfigError, match='picks no layer'):
        activations(model, variables, X, 'block')


def test_what_cannot_be_probed_is_refused():
    with pytest.raises(DataError, match='as many targets'):
        probes.fit_ridge(X, np.zeros((3, 1)))
    with pytest.raises(DataError, match='expected ids'):
        probes.fit_logistic(X, CLASSES + 0.5)
    with pytest.raises(DataError, match='finite features'):
        probes.fit_logistic(np.full_like(X, np.nan), CLASSES)
    with pytest.raises(ConfigError, match='raise l2 or max_steps'):
        probes.fit_logistic(X, CLASSES, tolerance=1e-6, max_steps=2)
