import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from bigjax import metrics
from bigjax.data.core import DataSpec
from bigjax.errors import ConfigError
from bigjax.tasks import language_model
from bigjax.tasks.language_model import Config

RNG = np.random.default_rng(0)
B, T = 3, 5


def task_of(vocab, config=Config(), token_bytes=None):  # noqa: B008
    row = jax.ShapeDtypeStruct((T,), jnp.int32)
    spec = DataSpec(row, row, vocab_size=vocab, tokens=T, token_bytes=token_bytes)
    return language_model.build(config, spec)


def batch_of(vocab, weights):
    logits = RNG.normal(size=(B, T, vocab)).astype(np.float32)
    targets = RNG.integers(vocab, size=(B, T)).astype(np.int32)
    return {'inputs': logits, 'targets': targets, 'weights': weights}


def negative_log_likelihood(batch):
    chances = log_softmax(batch['inputs'].astype(float), -1)
    return -np.take_along_axis(chances, batch['targets'][..., None], -1)[..., 0]


def test_next_token_loss_and_z_loss():
    batch = batch_of(11, np.ones(B, np.float32))
    found = task_of(11).loss(jnp.asarray, batch)
    np.testing.assert_allclose(found.values, negative_log_likelihood(batch), rtol=1e-5)
    assert found.weights.shape == (B, T)
    with_z = task_of(11, Config(z_loss=0.1)).loss(jnp.asarray, batch)
    extra = 0.1 * logsumexp(batch['inputs'].astype(float), -1) ** 2
    np.testing.assert_allclose(with_z.values - found.values, extra, rtol=1e-3, atol=1e-5)


def test_bytes_are_measured_in_bits():
    weights = (RNG.random((B, T)) > 0.3).astype(np.float32)
    batch = batch_of(256, weights)
    lengths = RNG.integers(0, 4, 256)
    task = task_of(256, token_bytes=lengths)
    groups = task.metrics(task.default_metrics)
    found = task.loss(jnp.asarray, batch)
    sums = metrics.update(groups, found.outputs, found.targets, found.weights)
    values = metrics.compute(groups, metrics.accumulate(groups, None, sums))
    mean = (negative_log_likelihood(batch) * weights).sum() / weights.sum()
    assert values['perplexity'] == pytest.approx(np.exp(mean), rel=1e-5)
    nats = (negative_log_likelihood(batch) * weights).sum()
    size = (lengths[batch['targets']] * weights).sum()
    assert values['bits_per_byte'] == pytest.approx(nats / np.log(2) / size, rel=1e-5)


def test_other_vocabularies_have_no_bytes():
    assert 'bits_per_byte' not in task_of(11).default_metrics


def test_data_without_tokens_is_refused():
    with pytest.raises(ConfigError, match='expects token data'):
        task_of(None)
