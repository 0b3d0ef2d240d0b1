"""Whole arrays as a data set: what their dtypes and shapes mean, and what is refused in them.

Inputs uint8 [N, H, W(, C)] are images, other integers token ids, the rest numbers. Targets of
integers are class ids [N], or zeros and ones [N, C] of labels; floats are numbers.
"""

from collections.abc import Mapping

import numpy as np

from bigjax.data import images
from bigjax.data.checks import require_below, require_finite
from bigjax.data.core import ArraySource, Batch, Dataset
from bigjax.errors import DataError


def dataset(
    splits: Mapping[str, Batch],
    where: str,
    num_classes: int | None = None,
    class_names: tuple[str, ...] = (),
    vocab_size: int | None = None,
) -> Dataset:
    """A data set of the `inputs` and `targets` of each split; `where` they are from, for messages.

    num_classes, vocab_size: by default one more than the largest id. Raises: DataError.
    """
    train = splits['train']
    ids_below: dict[str, int | None] = {'inputs': None, 'targets': None}
    if train['inputs'].dtype.kind in 'iu' and train['inputs'].dtype != np.uint8:
        ids_below['inputs'] = vocab_size or _num_ids(splits, 'inputs')
    if train['targets'].dtype.kind not in 'iub':
        num_classes = None
    elif train['targets'].ndim == 2:
        num_classes, ids_below['targets'] = train['targets'].shape[1], 2
    else:
        num_classes = num_classes or len(class_names) or _num_ids(splits, 'targets')
        ids_below['targets'] = num_classes

    for split, rows in splits.items():
        inputs, targets = rows['inputs'].shape, rows['targets'].shape
        if len(inputs) < 2 or len(targets) not in (1, 2) or inputs[0] != targets[0]:
            raise DataError(
                f'{where}, {split}: expected inputs [N, ...] and targets [N] or [N, C], '
                f'got {list(inputs)} and {list(targets)}'
            )
    sources = {
        split: ArraySource(
            {
                role: _checked(rows[role], train[role].dtype, limit, f'{where}, {split} {role}')
                for role, limit in ids_below.items()
            }
        )
        for split, rows in splits.items()
    }
    return images.dataset(sources, num_classes, class_names, ids_below['inputs'])


def _num_ids(splits: Mapping[str, Batch], role: str) -> int:
    return 1 + max(int(rows[role].max(initial=0)) for rows in splits.values())


def _checked(array: np.ndarray, like: np.dtype, ids_below: int | None, where: str) -> np.ndarray:
    """Ids as int32, images as uint8 [N, H, W, C], other numbers as float32."""
    if array.dtype.kind != like.kind:
        raise DataError(f'{where}: expected dtype {like}, as in train, got {array.dtype}')
    if ids_below:
        require_below(array, ids_below, where)
        return array.astype(np.int32)
    if array.dtype == np.uint8 and array.ndim in (3, 4):
        return array[..., np.newaxis] if array.ndim == 3 else array
    if array.dtype.kind not in 'fiub':
        raise DataError(f'{where}: expected numbers, got dtype {array.dtype}')
    with np.errstate(over='ignore'):  # what is too large becomes an infinity
        numbers = array.astype(np.float32)
    require_finite(numbers, where)
    return numbers
