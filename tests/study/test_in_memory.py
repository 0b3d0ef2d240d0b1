import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigjax.errors import DataError
from bigjax.study import in_memory
from bigjax.study.in_memory import Rows

RNG = np.random.default_rng(0)
ROWS = Rows(np.float32(RNG.normal(size=(30, 4))), np.int32(RNG.integers(0, 3, 30)))


def test_digits_stand_in_for_images():
    train, test = in_memory.read_images(None, smoke=True)
    assert train.inputs.shape == (1200, 64)
    assert test.inputs.shape == (597, 64)
    assert (train.inputs.min(), train.inputs.max()) == (0, 1)
    assert set(test.targets) == set(range(10))
    assert len(train.first(7).targets) == 7


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match='no file train-images-idx3-ubyte'):
        in_memory.read_images(tmp_path, smoke=False)
    for folder in (None, tmp_path / 'nowhere'):
        with pytest.raises(DataError, match='--data: expected a folder with the four IDX files'):
            in_memory.read_images(folder, smoke=False)


def test_pixels_of_idx_files_are_read_whole(tmp_path):
    for split, count in (('train', 3), ('t10k', 2)):
        pixels = np.arange(count * 4, dtype=np.uint8) * 20
        head = bytes([0, 0, 8, 3]) + np.array([count, 2, 2], '>u4').tobytes()
        (tmp_path / f'{split}-images-idx3-ubyte').write_bytes(head + pixels.tobytes())
        head = bytes([0, 0, 8, 1]) + np.array([count], '>u4').tobytes()
        labels = np.arange(count, dtype=np.uint8)
        (tmp_path / f'{split}-labels-idx1-ubyte').write_bytes(head + labels.tobytes())
    train, test = in_memory.read_images(tmp_path, smoke=False)
    np.testing.assert_allclose(train.inputs.ravel(), np.arange(12) * 20 / 255, rtol=1e-6)
    assert test.targets.tolist() == [0, 1]


def test_training_is_gradient_descent_step_by_step():
    model = in_memory.perceptron(ROWS, (5,), 'tanh', outputs=3)
    loss, optimizer = in_memory.cross_entropy(model), optax.sgd(0.3)
    params = start = model.init(jax.random.key(0))['params']
    key = jax.random.key(1)
    found, _, values = in_memory.train(
        loss, optimizer, start, optimizer.init(start), ROWS, key, steps=4, batch_size=6
    )
    expected = []
    for now in jax.random.split(key, 4):
        chosen = np.asarray(jax.random.randint(now, (6,), 0, 30))
        batch = Rows(ROWS.inputs[chosen], ROWS.targets[chosen])
        logits = by_hand(params, batch.inputs)
        expected.append(-jax.nn.log_softmax(logits)[np.arange(6), batch.targets].mean())
        grads = jax.grad(loss)(params, batch)
        params = jax.tree.map(lambda leaf, grad: leaf - 0.3 * grad, params, grads)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, params)


def test_accuracy_counts_rows():
    model = in_memory.perceptron(ROWS, (5,), 'tanh', outputs=3)
    params = model.init(jax.random.key(0))['params']
    told = by_hand(params, ROWS.inputs).argmax(-1)
    found = in_memory.accuracy(model, params, ROWS)
    assert float(found) == pytest.approx(float(np.mean(told == ROWS.targets)))


def by_hand(params, inputs):
    dense = params['hidden_0']['dense']
    hidden = jnp.tanh(inputs @ dense['kernel'] + dense['bias'][None])
    return hidden @ params['read_out']['kernel'] + params['read_out']['bias'][None]
