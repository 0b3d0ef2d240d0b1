"""Any TFDS data set that was prepared as array_record, read without TensorFlow.

Records are decoded once, split by split, into a cache that later runs share: decoding a PNG at each
read is far slower than training wants.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tensorflow_datasets as tfds

from bigjax.data import cache, images
from bigjax.data.core import Batch, Dataset
from bigjax.errors import DataError, nearest
from bigjax.schema import PositiveInt

FORMAT = 'array_record'

Builder: TypeAlias = tfds.core.DatasetBuilder

Converter = Callable[[Any], Any]
"""A feature of one record, as TFDS gives it -> its row. Raises: one of images.DECODE_ERRORS."""

Features = Mapping[str, tuple[str, Converter]]
"""For inputs and for targets the name of a feature, and its converter."""


@dataclass(frozen=True)
class Config:
    """
    dataset: a name with an optional config and version: 'fashion_mnist', 'mnist:3.0.1'.
    data_dir: where TFDS keeps prepared data; by default $TFDS_DATA_DIR, or ~/tensorflow_datasets.
    inputs, targets: names of features; by default the pair that the data set calls supervised.
    image_size: (height, width) to resize images to, needed when they vary in size.
    cache_dir: where decoded rows are kept; by default the user's cache folder.
    """

    dataset: str
    data_dir: str | None = None
    inputs: str | None = None
    targets: str | None = None
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    cache_dir: str | None = None


def load(config: Config) -> Dataset:
    """Images as uint8 [H, W, C], class labels as int32, other numbers as float32 or int32.

    A sequence of class labels becomes int32 [C], 1 for the classes that it holds.
    Raises: DataError for a data set that is not prepared, or a feature of another kind.
    """
    builder = prepared_builder(config.dataset, config.data_dir)
    names = _feature_names(config, builder)
    features = {role: (name, _converter(config, builder, name)) for role, name in names.items()}
    sources = {
        split: DecodedOnce(info.num_examples, partial(_rows, config, builder, features, split))
        for split, info in builder.info.splits.items()
    }
    label = builder.info.features[names['targets']]
    label = label.feature if isinstance(label, tfds.features.Sequence) else label
    if not isinstance(label, tfds.features.ClassLabel):
        return images.dataset(sources, None)
    return images.dataset(sources, label.num_classes, tuple(label.names))


@dataclass(frozen=True)
class DecodedOnce:
    """A source of known size whose rows are decoded, or found in the cache, when first read."""

    size: int
    load: Callable[[], Batch]

    @cached_property
    def arrays(self) -> Batch:
        return self.load()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, indices: np.ndarray) -> Batch:
        return {role: array[indices] for role, array in self.arrays.items()}


def find_builder(name: str, data_dir: Path | str | None, **options: Any) -> Builder:
    """The builder of a data set, by TFDS's own code or by the files of one that is prepared.

    Raises: DataError for an unknown name, config or version.
    """
    try:
        return tfds.builder(name, data_dir=data_dir, **options)
    except tfds.core.DatasetNotFoundError:
        known = nearest(name, tfds.list_builders(with_community_datasets=False))
        raise DataError(f'no data set {name!r} is known to TFDS, or prepared; {known}') from None
    except (ValueError, AssertionError) as error:  # no such config or version
        raise DataError(f'no TFDS data set {name!r}: {" ".join(str(error).split())}') from None


def require_array_record(builder: Builder) -> None:
    """Raises: DataError for a data set that was prepared in a format that needs TensorFlow."""
    formats = sorted(form.value for form in builder.info.available_file_formats())
    if FORMAT not in formats:
        raise DataError(
            f'{builder.data_path} is prepared as {", ".join(formats)}; expected {FORMAT}, which '
            f'needs no TensorFlow: move it away, or choose another data_dir, and prepare it again'
        )


def prepared_builder(name: str, data_dir: str | None) -> Builder:
    """The builder of a data set that is prepared as array_record. Raises: DataError."""
    builder = find_builder(name, data_dir)
    if not builder.is_prepared():
        option = f' --data_dir={data_dir}' if data_dir else ''
        raise DataError(
            f'{name} is not prepared in {builder.data_path}; do it once with: '
            f'bigjax data prepare {name}{option}'
        )
    require_array_record(builder)
    return builder


def records_of(builder: Builder, split: str) -> Any:
    """Random access to the records of a split, their images still encoded."""
    still_encoded = {
        name: tfds.decode.SkipDecoding()
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    return builder.as_data_source(split, decoders=still_encoded, file_format=FORMAT)


def split_key(builder: Builder, split: str) -> dict[str, Any]:
    """Plain values that change when the records of a split do."""
    info = builder.info
    return {
        'dataset': info.full_name,
        'prepared': (builder.data_path / 'dataset_info.json').stat().mtime,
        'split': [split, info.splits[split].shard_lengths, info.splits[split].num_bytes],
    }


def _feature_names(config: Config, builder: Builder) -> Mapping[str, str]:
    inputs, targets = builder.info.supervised_keys or ('', '')
    names = {'inputs': config.inputs or inputs, 'targets': config.targets or targets}
    for role, name in names.items():
        if name not in builder.info.features:
            raise DataError(
                f'{config.dataset} has no feature {name!r} to use as {role}; set '
                f'config.data.{role}; {nearest(name, builder.info.features)}'
            )
    return names


def _converter(config: Config, builder: Builder, name: str) -> Converter:
    """How values of a feature become rows of one shape. Raises: DataError if they cannot."""
    feature = builder.info.features[name]
    dtype, shape = np.dtype(feature.np_dtype), feature.shape
    match feature:
        case tfds.features.Image() if dtype == np.uint8:
            if config.image_size is None and None in shape[:2]:
                raise DataError(
                    f'{config.dataset}, feature {name!r}: images vary in size; set '
                    f'config.data.image_size=HEIGHT,WIDTH'
                )
            return partial(images.decode, size=config.image_size, channels=shape[-1] or 3)
        case tfds.features.ClassLabel():
            return partial(_class_id, num_classes=feature.num_classes)
        case tfds.features.Sequence(feature=tfds.features.ClassLabel() as label):
            return partial(_class_indicators, num_classes=label.num_classes)
        case tfds.features.Tensor() if dtype.kind in 'biuf' and None not in shape:
            return partial(_finite, dtype=np.float32 if dtype.kind == 'f' else np.int32)
    raise DataError(
        f'{config.dataset}, feature {name!r} is {feature!r}; expected a uint8 image, a class '
        f'label, a sequence of class labels, or numbers of a fixed shape'
    )


def _class_id(value: int, num_classes: int) -> np.int32:
    if not 0 <= value < num_classes:
        raise ValueError(f'label {value} is not in 0..{num_classes - 1}; is the split unlabelled?')
    return np.int32(value)


def _class_indicators(values: np.ndarray, num_classes: int) -> np.ndarray:
    ids = [_class_id(value, num_classes) for value in values]
    return np.isin(np.arange(num_classes), ids).astype(np.int32)


def _finite(value: np.ndarray, dtype: type) -> np.ndarray:
    if not np.all(np.isfinite(value)):
        raise ValueError('holds nan or inf')
    return np.asarray(value, dtype)


def _rows(config: Config, builder: Builder, features: Features, split: str) -> Batch:
    """All rows of a split. Raises: DataError naming a record that cannot be read."""
    key = {
        **split_key(builder, split),
        'features': {role: name for role, (name, _) in features.items()},
        'image_size': config.image_size,
    }
    where = f'{builder.data_path}, split {split!r}'

    def decode(indices: Sequence[int]) -> Batch:
        rows: dict[str, list] = {role: [] for role in features}
        for index, record in zip(indices, records.__getitems__(indices), strict=True):
            for role, (name, convert) in features.items():
                try:
                    rows[role].append(convert(record[name]))
                except images.DECODE_ERRORS as error:
                    raise DataError(f'{where}, record {index}, {name!r}: {error}') from error
        return {role: np.stack(values) for role, values in rows.items()}

    try:
        records = records_of(builder, split)
        name = f'{builder.info.full_name}-{split}'.replace('/', '-')
        root = cache.root(config.cache_dir)
        return cache.rows(root, name, key, decode, lambda: range(len(records)))
    except RuntimeError as error:  # array_record's own, with the byte offset in its message
        raise DataError(f'{where}: {error}; move it away and prepare it again') from error
