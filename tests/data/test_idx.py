import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from bigjax import schema
from bigjax.data import idx
from bigjax.data.core import Subset, everything
from bigjax.errors import DataError

DEV_DATA = Path(
    os.environ.get('BIGJAX_DEV_DATA', Path(__file__).parents[2].parent / 'shared' / 'data')
)


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f'>{array.ndim}I', *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten training images (gzipped) and four test images (not), of 5 x 3 pixels."""
    rng = np.random.default_rng(0)
    for prefix, count in (('train', 10), ('t10k', 4)):
        images = idx_bytes(rng.integers(0, 256, (count, 5, 3)))
        labels = idx_bytes(np.arange(count) % 4)
        if prefix == 'train':
            (tmp_path / 'train-images-idx3-ubyte.gz').write_bytes(gzip.compress(images))
            (tmp_path / 'train-labels-idx1-ubyte.gz').write_bytes(gzip.compress(labels))
        else:
            (tmp_path / 't10k-images-idx3-ubyte').write_bytes(images)
            (tmp_path / 't10k-labels-idx1-ubyte').write_bytes(labels)
    return tmp_path


def load(folder: Path, **options) -> idx.Dataset:
    return idx.load(schema.build(idx.Config, {'path': str(folder), **options}))


def test_images_and_labels_are_read_gzipped_or_not(folder):
    data = load(folder)
    train, test = everything(data.sources['train']), everything(data.sources['test'])
    expected = np.random.default_rng(0).integers(0, 256, (10, 5, 3))
    np.testing.assert_array_equal(train['inputs'][..., 0], expected)
    np.testing.assert_array_equal(train['targets'], np.arange(10) % 4)
    assert train['inputs'].dtype == np.uint8
    assert train['targets'].dtype == np.int32
    assert test['inputs'].shape == (4, 5, 3, 1)


def test_statistics_are_those_of_the_rows_given_alone(folder):
    data = load(folder)
    train = Subset(data.sources['train'], np.arange(3, 9))
    spec, transform = data.prepare(train)
    pixels = everything(train)['inputs'] / 255
    np.testing.assert_allclose(spec.mean, [pixels.mean()], rtol=1e-12)
    np.testing.assert_allclose(spec.std, [pixels.std()], rtol=1e-12)
    assert spec.num_classes == 4
    assert (spec.inputs.shape, spec.inputs.dtype) == ((5, 3, 1), np.uint8)
    assert (spec.targets.shape, spec.targets.dtype) == ((), np.int32)
    np.testing.assert_array_equal(
        everything(transform(train))['inputs'], everything(train)['inputs']
    )
    np.testing.assert_array_equal(data.labels(train), (np.arange(10) % 4)[3:9])


def test_statistics_by_channel_of_colour_images(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (6, 4, 4, 3))
    images[..., 1] = 51
    (tmp_path / 'x').write_bytes(idx_bytes(images))
    (tmp_path / 'y').write_bytes(idx_bytes(np.arange(6)))
    data = load(tmp_path, files={'train': 'x,y'}, class_names='a,b,c,d,e,f')
    spec, _ = data.prepare(data.sources['train'])
    np.testing.assert_allclose(spec.mean, images.mean(axis=(0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(spec.std[::2], images[..., ::2].std(axis=(0, 1, 2)) / 255)
    assert spec.mean[1] == 0.2
    assert spec.std[1] == 1  # not 0, by which nothing can be divided
    assert spec.class_names == ('a', 'b', 'c', 'd', 'e', 'f')


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('t10k-images-idx3-ubyte', b'', r'offset 0: expected 00 00 08 03.*got an empty file'),
        ('t10k-images-idx3-ubyte', b'\x89PNG1234', r'offset 0: expected .*got 89 50 4e 47'),
        ('t10k-images-idx3-ubyte', idx_bytes(np.arange(4)), 'got 00 00 08 01'),
        ('t10k-labels-idx1-ubyte', idx_bytes(np.arange(4))[:-1], r'offset 11: the file ends here'),
        ('t10k-labels-idx1-ubyte', idx_bytes(np.arange(4))[:6], r'offset 6: the file ends here'),
        ('t10k-labels-idx1-ubyte', idx_bytes(np.arange(4)) + b'!', r'offset 12: .* goes on'),
        (
            't10k-labels-idx1-ubyte',
            gzip.compress(idx_bytes(np.arange(4)), mtime=0)[:-9],
            'damaged gzip',
        ),
    ],
)
def test_a_damaged_file_is_named_with_its_offset(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load(folder)
    assert name in str(error.value)


def test_a_missing_file_and_a_label_without_a_name_are_errors(folder):
    with pytest.raises(DataError, match=r'record 3: expected an id in \[0, 2\], got 3'):
        load(folder, class_names=('a', 'b', 'c'))
    (folder / 't10k-labels-idx1-ubyte').write_bytes(idx_bytes(np.arange(3)))
    with pytest.raises(DataError, match=r'test: expected .* got \[4, 5, 3\] and \[3\]'):
        load(folder)
    (folder / 't10k-labels-idx1-ubyte').unlink()
    with pytest.raises(DataError, match=r'no file t10k-labels-idx1-ubyte or .*\.gz in'):
        load(folder)


@pytest.mark.skipif(
    not (DEV_DATA / 'mnist_t10k-images-idx3-ubyte.gz').exists(),
    reason='no MNIST files in $BIGJAX_DEV_DATA',
)
def test_mnist_itself():
    files = ('mnist_t10k-images-idx3-ubyte', 'mnist_t10k-labels-idx1-ubyte')
    rows = everything(load(DEV_DATA, files={'train': files}).sources['train'])
    assert rows['inputs'].shape == (10_000, 28, 28, 1)
    # The first labels of the test set, and how often each digit occurs, as published.
    assert rows['targets'][:5].tolist() == [7, 2, 1, 0, 4]
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(rows['targets']).tolist() == counts
