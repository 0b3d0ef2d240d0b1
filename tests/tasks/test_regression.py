import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, mean_squared_error

from bigjax.data.core import DataSpec
from bigjax.errors import ConfigError
from bigjax.tasks import regression
from bigjax.tasks.regression import Config

RNG = np.random.default_rng(0)


def spec(shape=(), dtype=jnp.float32):
    return DataSpec(None, jax.ShapeDtypeStruct(shape, dtype))


def huber(predicted, actual, delta):
    error = np.abs(predicted - actual)
    return np.where(error < delta, error**2 / 2, delta * (error - delta / 2)).mean()


@pytest.mark.parametrize('outputs', [1, 3])
@pytest.mark.parametrize(
    ('config', 'oracle'),
    [
        (Config(), mean_squared_error),
        (Config(loss='mae'), mean_absolute_error),
        (Config(loss='huber', delta=0.5), lambda y, p: huber(p, y, 0.5)),
    ],
)
def test_losses(config, oracle, outputs):
    shape = () if outputs == 1 else (outputs,)
    task = regression.build(config, spec(shape))
    assert task.outputs == outputs
    predicted = RNG.normal(size=(9, outputs)).astype(np.float32)
    actual = RNG.normal(size=(9, *shape)).astype(np.float32)
    batch = {'inputs': predicted, 'targets': actual, 'weights': np.ones(9, np.float32)}
    found = task.loss(jnp.asarray, batch)
    assert found.values.shape == (9,)
    expected = oracle(actual.reshape(9, -1), predicted)
    assert float(found.values.mean()) == pytest.approx(expected, rel=1e-5)


def test_classes_are_refused():
    with pytest.raises(ConfigError, match=r'got int32.*use task classification'):
        regression.build(Config(), spec(dtype=jnp.int32))
