import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from bigjax import schema
from bigjax.data import images, prepare, records
from bigjax.data import tfds as data_tfds
from bigjax.data.core import Dataset, everything
from bigjax.errors import ConfigError, DataError

SIZES = {'train': 20, 'test': 5, 'unlabelled': 3}


def png(pixels: np.ndarray) -> io.BytesIO:
    """Encoded here: TFDS itself would encode an array with TensorFlow."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, 'PNG')
    return io.BytesIO(file.getvalue())


def image(split: str, index: int) -> np.ndarray:
    rng = np.random.default_rng([len(split), index])
    return rng.integers(0, 256, (6, 5, 1), np.uint8)


class BigjaxTiny(tfds.core.GeneratorBasedBuilder):
    """A data set that TFDS can write and read without TensorFlow; `id` tells which record it is."""

    VERSION = tfds.core.Version('1.2.0')

    def _info(self):
        features = {
            'id': np.int64,
            'image': tfds.features.Image(shape=(6, 5, 1)),
            'photo': tfds.features.Image(shape=(None, None, 3)),
            'label': tfds.features.ClassLabel(names=['cat', 'dog', 'cow']),
            'tags': tfds.features.Sequence(tfds.features.ClassLabel(num_classes=4)),
            'numbers': tfds.features.Tensor(shape=(2,), dtype=np.float64),
            'text': tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=('image', 'label'),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split):
        for i in range(SIZES[split]):
            yield (
                i,
                {
                    'id': i,
                    'image': png(image(split, i)),
                    'photo': png(np.full((4 + i, 4, 3), i, np.uint8)),
                    'label': i % 3 if split != 'unlabelled' else -1,
                    'tags': [0, 3][: i % 3],
                    'numbers': [i, -i] if split != 'unlabelled' else [np.inf, 0],
                    'text': 'x',
                },
            )


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('tfds')
    prepared = prepare.prepare('bigjax_tiny', folder)
    assert prepared == folder / 'bigjax_tiny' / '1.2.0'
    return folder


def load(data_dir: Path, dataset: str = 'bigjax_tiny', **options) -> Dataset:
    options = {'cache_dir': str(data_dir / 'cache'), 'data_dir': str(data_dir), **options}
    values = {'dataset': dataset, **options}
    return data_tfds.load(schema.build(data_tfds.Config, values, 'config.data'))


def test_the_supervised_pair_is_read_by_default(data_dir):
    data = load(data_dir)
    assert {name: len(source) for name, source in data.sources.items()} == SIZES
    for split in ('train', 'test'):
        rows = everything(data.sources[split])
        ids = everything(load(data_dir, targets='id').sources[split])['targets']
        assert sorted(ids.tolist()) == list(range(SIZES[split]))  # TFDS shuffles as it writes
        expected = np.stack([image(split, i) for i in ids])
        np.testing.assert_array_equal(rows['inputs'], expected)
        np.testing.assert_array_equal(rows['targets'], ids % 3)
    spec, _ = data.prepare(data.sources['train'])
    train = everything(data.sources['train'])['inputs'] / 255
    np.testing.assert_allclose([*spec.mean, *spec.std], [train.mean(), train.std()])
    assert (spec.inputs.shape, spec.inputs.dtype) == ((6, 5, 1), np.uint8)
    assert (spec.targets.shape, spec.targets.dtype) == ((), np.int32)
    assert (spec.num_classes, spec.class_names) == (3, ('cat', 'dog', 'cow'))


def test_any_fixed_shape_or_resized_feature_can_be_used(data_dir):
    data = load(data_dir, inputs='photo', targets='tags', image_size=(3, 2))
    rows = everything(data.sources['train'])
    ids = everything(load(data_dir, targets='id').sources['train'])['targets']
    assert rows['inputs'].shape == (20, 3, 2, 3)
    np.testing.assert_array_equal(rows['inputs'][:, 0, 0, 0], ids)
    expected = np.zeros((20, 4), np.int32)
    expected[ids % 3 >= 1, 0] = expected[ids % 3 == 2, 3] = 1
    np.testing.assert_array_equal(rows['targets'], expected)
    assert data.labels(data.sources['train']).tolist() == [0] * 20  # nothing to stratify by

    regression = load(data_dir, inputs='numbers', targets='id')
    rows = everything(regression.sources['train'])
    assert (rows['inputs'].dtype, rows['targets'].dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(rows['inputs'], np.stack([ids, -ids], axis=1))
    spec, _ = regression.prepare(regression.sources['train'])
    assert (spec.mean, spec.num_classes, regression.labels) == ((), None, None)


def test_records_are_decoded_once_and_only_those_of_the_splits_that_are_read(data_dir, monkeypatch):
    decode, calls = images.decode, []
    monkeypatch.setattr(
        images, 'decode', lambda *args, **kw: calls.append(args) or decode(*args, **kw)
    )
    cache = str(data_dir / 'another cache')
    for _ in range(2):
        row = load(data_dir, cache_dir=cache).sources['test'][np.array([1, 1, 0])]
        assert row['inputs'].shape == (3, 6, 5, 1)
    assert len(calls) == SIZES['test']
    load(data_dir, cache_dir=cache, image_size=(2, 2)).sources['test'][np.array([0])]
    assert len(calls) == 2 * SIZES['test']


def test_a_split_without_labels_and_numbers_that_are_not_finite_are_refused(data_dir):
    with pytest.raises(DataError, match=r"split 'unlabelled', record 0, 'label': label -1"):
        everything(load(data_dir).sources['unlabelled'])
    with pytest.raises(DataError, match=r"record 0, 'numbers': holds nan or inf"):
        everything(load(data_dir, inputs='numbers').sources['unlabelled'])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'dataset': 'bigjax_tinny'}, r"no data set 'bigjax_tinny' .*did you mean 'bigjax_tiny'"),
        ({'dataset': 'bigjax_tiny:9.9.9'}, r"no TFDS data set 'bigjax_tiny:9.9.9': .*only: 1.2.0"),
        ({'dataset': 'mnist'}, r'not prepared in .*: bigjax data prepare mnist --data_dir=.*tfds'),
        ({'inputs': 'imag'}, r"no feature 'imag' to use as inputs; .*did you mean 'image'"),
        ({'inputs': 'photo'}, r"feature 'photo': images vary in size; set config.data.image_size"),
        ({'inputs': 'text'}, r"feature 'text' is Text.*expected a uint8 image, a class label"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_cure(data_dir, options, message):
    with pytest.raises(DataError, match=message):
        load(data_dir, **options)


def test_a_damaged_record_file_is_named(tmp_path):
    folder = prepare.prepare('bigjax_tiny', tmp_path)
    (file,) = folder.glob('*-test.array_record*')
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"split 'test': .*prepare it again"):
        everything(load(tmp_path).sources['test'])


def test_reading_needs_neither_tensorflow_nor_the_code_of_the_data_set(data_dir, tmp_path):
    program = f"""
import sys
import numpy as np
from bigjax.data import tfds
data = tfds.load(tfds.Config('bigjax_tiny', {str(data_dir)!r}, cache_dir={str(tmp_path)!r}))
assert data.sources['train'][np.arange(20)]['inputs'].shape == (20, 6, 5, 1)
assert 'tensorflow' not in sys.modules
"""
    subprocess.run([sys.executable, '-W', 'error', '-c', program], check=True)


FASHION_MNIST = Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser()


@pytest.mark.slow
@pytest.mark.skipif(
    not (FASHION_MNIST / 'fashion_mnist').exists(),
    reason='Fashion-MNIST is not prepared: bigjax data prepare fashion_mnist',
)
def test_fashion_mnist_itself(tmp_path):
    config = data_tfds.Config('fashion_mnist', str(FASHION_MNIST), cache_dir=str(tmp_path))
    data = data_tfds.load(config)
    spec, _ = data.prepare(data.sources['train'])
    assert spec.class_names[0] == 'T-shirt/top'
    # As published in many tutorials for this data set.
    np.testing.assert_allclose([*spec.mean, *spec.std], [0.2860, 0.3530], atol=1e-4)
    assert np.bincount(data.labels(data.sources['train'])).tolist() == [6000] * 10
    assert np.bincount(data.labels(data.sources['test'])).tolist() == [1000] * 10


def test_columns_of_a_prepared_data_set_are_records(data_dir, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(data_dir))
    parts = records.find(['tfds:bigjax_tiny'])
    assert set(parts) == set(SIZES)
    [part] = parts['train']
    found = list(part.read(('text', 'label', 'id')))
    assert sorted(found) == sorted(('x', i % 3, i) for i in range(SIZES['train']))
    with pytest.raises(ConfigError, match="no column 'texts'; did you mean 'text'"):
        list(part.read(('texts',)))
