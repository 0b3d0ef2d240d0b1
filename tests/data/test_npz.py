"""Arrays of .npz files: what their dtypes and shapes mean, and what is refused."""

import numpy as np
import pytest

from bigjax import schema
from bigjax.config import DataConfig
from bigjax.data.core import everything
from bigjax.data.load import load
from bigjax.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 4, 5), dtype=np.uint8)
VECTORS = RNG.normal(size=(20, 3))
CLASSES = np.arange(20) % 4
ALL = {'train': 'train'}


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    """Writes data.npz and loads it, all rows as train unless told otherwise."""
    monkeypatch.chdir(tmp_path)

    def write_and_load(held, splits=ALL, **options):
        np.savez(tmp_path / 'data.npz', **held)
        config = {'name': 'npz', 'path': 'data.npz', 'splits': splits, **options}
        return load(schema.build(DataConfig, config, 'config.data'))

    return write_and_load


def test_images_with_classes(arrays):
    splits = arrays({'inputs': IMAGES, 'targets': CLASSES})
    rows = everything(splits.sources['train'])
    np.testing.assert_array_equal(rows['inputs'], IMAGES[..., None])
    np.testing.assert_array_equal(rows['targets'], CLASSES)
    spec = splits.spec
    assert (spec.inputs.shape, spec.inputs.dtype) == ((4, 5, 1), np.uint8)
    assert (spec.targets.shape, spec.targets.dtype) == ((), np.int32)
    assert spec.num_classes == 4
    np.testing.assert_allclose(spec.mean, [(IMAGES / 255).mean()], rtol=1e-6)
    np.testing.assert_allclose(spec.std, [(IMAGES / 255).std()], rtol=1e-6)


def test_vectors_with_numbers(arrays):
    splits = arrays({'x': VECTORS, 'y': VECTORS[:, :2]}, inputs='x', targets='y')
    rows = everything(splits.sources['train'])
    np.testing.assert_array_equal(rows['inputs'], VECTORS.astype(np.float32))
    np.testing.assert_array_equal(rows['targets'], VECTORS[:, :2].astype(np.float32))
    assert splits.spec.targets.shape == (2,)
    assert splits.spec.num_classes is None


def test_rows_of_zeros_and_ones_are_labels(arrays):
    labels = RNG.integers(0, 2, (20, 5)).astype(bool)
    splits = arrays({'inputs': VECTORS, 'targets': labels})
    targets = everything(splits.sources['train'])['targets']
    np.testing.assert_array_equal(targets, labels)
    assert (targets.dtype, splits.spec.num_classes) == (np.int32, 5)


def test_other_integers_are_token_ids(arrays):
    ids = RNG.integers(0, 50, (20, 7))
    ids[3, 2] = 49
    spec = arrays({'inputs': ids, 'targets': CLASSES}).spec
    assert (spec.inputs.dtype, spec.vocab_size, spec.tokens) == (np.int32, 50, 7)
    assert arrays({'inputs': ids, 'targets': CLASSES}, vocab_size=64).spec.vocab_size == 64


def test_the_splits_of_the_file(arrays):
    held = {
        'x_train': VECTORS,
        'y_train': CLASSES,
        'x_test': VECTORS[:8] + 1,
        'y_test': CLASSES[:8],
    }
    splits = arrays(held, splits={}, inputs='x_{split}', targets='y_{split}')
    sizes = {name: len(source) for name, source in splits.sources.items()}
    assert sizes == {'train': 18, 'val': 2, 'test': 8}
    np.testing.assert_array_equal(
        everything(splits.sources['test'])['inputs'], (VECTORS[:8] + 1).astype(np.float32)
    )


def with_value(array, where, value):
    changed = array.copy()
    changed[where] = value
    return changed


@pytest.mark.parametrize(
    ('held', 'options', 'message'),
    [
        (
            {'inputs': with_value(VECTORS, (7, 2), np.nan), 'targets': CLASSES},
            {},
            'data.npz, train inputs: record 7, position 2: expected a finite number, got nan',
        ),
        (
            {'inputs': VECTORS, 'targets': with_value(VECTORS[:, 0], 5, -np.inf)},
            {},
            'data.npz, train targets: record 5: expected a finite number, got -inf',
        ),
        (
            {'inputs': VECTORS, 'targets': with_value(CLASSES, 11, -1)},
            {},
            r'data.npz, train targets: record 11: expected an id in \[0, 3\], got -1',
        ),
        (
            {'inputs': VECTORS, 'targets': CLASSES},
            {'num_classes': 3},
            r'targets: record 3: expected an id in \[0, 2\], got 3',
        ),
        (
            {'inputs': CLASSES[:, None], 'targets': CLASSES},
            {'vocab_size': 2},
            r'inputs: record 2: expected an id in \[0, 1\], got 2',
        ),
        (
            {'inputs': VECTORS, 'targets': np.full((20, 2), 2)},
            {},
            r'targets: record 0: expected an id in \[0, 1\], got 2',
        ),
        ({'inputs': VECTORS, 'targets': CLASSES[:19]}, {}, r'got \[20, 3\] and \[19\]'),
        ({'inputs': VECTORS[:0], 'targets': CLASSES[:0]}, {}, 'no records'),
        ({'inputs': VECTORS[:, 0], 'targets': CLASSES}, {}, r'inputs \[N, ...\] .* got \[20\] and'),
        ({'inputs': VECTORS, 'targets': IMAGES}, {}, r'or \[N, C\], got .* and \[20, 4, 5\]'),
        ({'inputs': VECTORS.astype(str), 'targets': CLASSES}, {}, 'expected numbers, got dtype <U'),
        ({'inputs': VECTORS.astype(object), 'targets': CLASSES}, {}, 'Object arrays cannot be'),
        (
            {'x_train': VECTORS, 'y_train': CLASSES, 'x_val': VECTORS, 'y_val': CLASSES + 0.5},
            {'inputs': 'x_{split}', 'targets': 'y_{split}'},
            'data.npz, val targets: expected dtype int64, as in train, got float64',
        ),
        (
            {'x_train': VECTORS, 'y_train': CLASSES, 'x_val': VECTORS[:, :2], 'y_val': CLASSES},
            {'inputs': 'x_{split}', 'targets': 'y_{split}', 'splits': {}},
            r"split 'val': inputs are float32\[2\]; the spec says float32\[3\]",
        ),
    ],
)
def test_faults_of_the_arrays(arrays, held, options, message):
    with pytest.raises(DataError, match=message) as caught:
        arrays(held, **options)
    assert '\n' not in str(caught.value)


def test_names_and_files_that_are_not_there(arrays, tmp_path):
    with pytest.raises(ConfigError, match="no array 'inputs'; did you mean 'input'"):
        arrays({'input': VECTORS, 'targets': CLASSES})
    held = {'x_train': VECTORS, 'y_train': CLASSES, 'x_val': VECTORS}
    with pytest.raises(ConfigError, match="no array 'y_val'"):
        arrays(held, inputs='x_{split}', targets='y_{split}')
    with pytest.raises(DataError, match=r'nowhere\.npz: no such file'):
        arrays({}, path='nowhere.npz')
    (tmp_path / 'bad.npz').write_bytes(b'PK\x03\x04 and then nothing')
    with pytest.raises(DataError, match=r'bad\.npz is not a whole \.npz file'):
        arrays({}, path='bad.npz')
    np.save(tmp_path / 'single.npy', VECTORS)
    with pytest.raises(DataError, match=r'single\.npy is not a whole \.npz file'):
        arrays({}, path='single.npy')


def test_a_damaged_archive(arrays, tmp_path):
    arrays({'inputs': VECTORS, 'targets': CLASSES})
    content = bytearray((tmp_path / 'data.npz').read_bytes())
    content[300] ^= 1  # of the numbers: the archive's checksum tells
    (tmp_path / 'damaged.npz').write_bytes(content)
    with pytest.raises(DataError, match=r'damaged\.npz cannot be read: Bad CRC-32'):
        arrays({'inputs': VECTORS, 'targets': CLASSES}, path='damaged.npz')
