"""From a data config to prepared splits: bundled sets, statistics of training rows, checks."""

import sys
import textwrap

import jax
import numpy as np
import pytest
from sklearn import datasets
from sklearn.preprocessing import StandardScaler

from bigjax import schema
from bigjax.config import DataConfig
from bigjax.data.core import ArraySource, everything
from bigjax.data.load import load
from bigjax.errors import ConfigError, DataError


def loaded(name, **config):
    return load(schema.build(DataConfig, {'name': name, **config}, 'config.data'))


OWN = """
    from dataclasses import dataclass

    import jax
    import numpy as np

    from bigjax.data.core import ArraySource, Dataset, DataSpec, Subset, rowwise

    SEEN = []
    CALLS = []

    @dataclass(frozen=True)
    class Config:
        dtype: str = 'float32'
        on_disk: str | None = None

    def load(config):
        rows = np.arange(20)
        if config.on_disk:
            np.save(config.on_disk, rows)
            rows = np.load(config.on_disk, mmap_mode='r')

        def prepare(train):
            SEEN.extend(train[np.arange(len(train))]['raw'].tolist())
            spec = DataSpec(
                jax.ShapeDtypeStruct((1,), config.dtype), jax.ShapeDtypeStruct((), 'int32')
            )

            def transform(batch):
                CALLS.append(len(batch['raw']))
                inputs = batch['raw'][:, None].astype('float32')
                return {'inputs': inputs, 'targets': batch['raw'].astype('int32')}

            return spec, rowwise(transform)

        return Dataset({'train': ArraySource({'raw': rows})}, prepare)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A data set outside the repository, and its module once it is loaded."""
    name = f'own_{tmp_path.name}'
    (tmp_path / name).mkdir()
    (tmp_path / name / 'rows.py').write_text(textwrap.dedent(OWN))
    monkeypatch.syspath_prepend(tmp_path)
    return f'{name}.rows'


def module_of(name):
    return sys.modules[name]


def test_only_training_rows_are_shown_to_prepare(own):
    splits = loaded(own)
    training = everything(splits.sources['train'])['targets']
    assert sorted(module_of(own).SEEN) == sorted(training)
    assert len(training) == 16


def test_rows_in_memory_are_transformed_once_and_rows_on_disk_when_read(own, tmp_path):
    in_memory = loaded(own)
    calls = module_of(own).CALLS
    assert sorted(calls) == [2, 2, 16]
    for _ in range(3):
        in_memory.sources['train'][np.array([3, 1])]
    assert sorted(calls) == [2, 2, 16]

    calls.clear()
    on_disk = loaded(own, on_disk=str(tmp_path / 'rows.npy'))
    assert calls == [1, 1, 1]  # the first row of each split, checked against the spec
    row = on_disk.sources['train'][np.array([3, 1])]
    assert calls == [1, 1, 1, 2]
    np.testing.assert_array_equal(
        row['targets'], in_memory.sources['train'][np.array([3, 1])]['targets']
    )


def test_rows_unlike_the_spec_are_refused(own):
    with pytest.raises(DataError, match=r"split 'train': inputs are float32\[1\]; .* float64\[1\]"):
        loaded(own, dtype='float64')


def test_unknown_names_and_options():
    with pytest.raises(ConfigError, match=r"config\.data\.name 'digit': did you mean 'digits'"):
        loaded('digit')
    with pytest.raises(ConfigError, match=r'unknown key config\.data\.scale'):
        loaded('digits', scale=2)


def test_digits_are_images_between_0_and_1():
    splits = loaded('digits')
    assert {name: len(source) for name, source in splits.sources.items()} == {
        'train': 1438,
        'val': 179,
        'test': 180,
    }
    spec = splits.spec
    assert (spec.num_classes, spec.inputs.shape, spec.inputs.dtype) == (10, (8, 8, 1), np.float32)
    assert spec.class_names == tuple('0123456789')
    rows = [everything(source) for source in splits.sources.values()]
    images = np.concatenate([part['inputs'] for part in rows])
    targets = np.concatenate([part['targets'] for part in rows])
    assert (images.dtype, images.min(), images.max()) == (np.float32, 0, 1)
    assert targets.dtype == np.int32
    original = datasets.load_digits()
    ours = sorted(zip(targets, (images * 16).reshape(-1, 64).tolist(), strict=True))
    theirs = sorted(zip(original.target, original.data.tolist(), strict=True))
    assert ours == theirs
    shares = [np.bincount(part['targets'], minlength=10) / len(part['targets']) for part in rows]
    np.testing.assert_allclose(shares[1], shares[0], atol=0.02)
    np.testing.assert_allclose(shares[2], shares[0], atol=0.02)


@pytest.mark.parametrize(
    ('name', 'bunch', 'num_classes'),
    [
        ('breast_cancer', datasets.load_breast_cancer(), 2),
        ('wine', datasets.load_wine(), 3),
        ('diabetes', datasets.load_diabetes(scaled=False), None),
    ],
)
def test_tables_are_standardised_by_their_training_rows(name, bunch, num_classes):
    splits = loaded(name, splits={'train': 'train[:70%]', 'test': 'train[70%:]'})
    cut = round(0.7 * len(bunch.data))
    scaler = StandardScaler().fit(bunch.data[:cut])
    for split, rows in (('train', slice(cut)), ('test', slice(cut, None))):
        ours = everything(splits.sources[split])
        assert ours['inputs'].dtype == np.float32
        np.testing.assert_allclose(
            ours['inputs'], scaler.transform(bunch.data[rows]), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_array_equal(ours['targets'], bunch.target[rows])
    spec = splits.spec
    assert spec.num_classes == num_classes
    assert spec.inputs.shape == (bunch.data.shape[1],)
    assert spec.feature_names == tuple(bunch.feature_names)
    assert spec.targets == jax.ShapeDtypeStruct((), np.int32 if num_classes else np.float32)
    if num_classes:
        assert spec.class_names == tuple(bunch.target_names)
    assert isinstance(splits.sources['train'], ArraySource)
