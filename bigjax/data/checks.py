"""What is refused in arrays that come from outside, with the record at fault."""

import numpy as np

from bigjax.errors import DataError


def require_finite(array: np.ndarray, where: str) -> None:
    """Raises: DataError for the first NaN or infinity, with its record and position."""
    if array.dtype.kind != 'f' or np.isfinite(array).all():
        return
    record, *position = (int(index) for index in np.argwhere(~np.isfinite(array))[0])
    value = array[record, *position]
    at = f', position {", ".join(map(str, position))}' if position else ''
    raise DataError(f'{where}: record {record}{at}: expected a finite number, got {value}')


def require_below(ids: np.ndarray, limit: int, where: str) -> None:
    """Raises: DataError for the first id outside [0, limit), with its record."""
    wrong = (ids < 0) | (ids >= limit)
    if wrong.any():
        record, *_ = first = tuple(np.argwhere(wrong)[0])
        raise DataError(
            f'{where}: record {record}: expected an id in [0, {limit - 1}], got {ids[first]}'
        )


def require_utf8(data: bytes, where: str) -> None:
    """Raises: DataError with the offset of the first byte that is not UTF-8."""
    try:
        data.decode('utf-8')
    except UnicodeDecodeError as error:
        raise DataError(
            f'{where}: invalid UTF-8 at byte {error.start} (0x{data[error.start]:02x}); '
            f'convert the file to UTF-8'
        ) from None
