"""Preparing a TFDS data set as array_record, also on a machine without internet.

TFDS checks what it downloads against recorded sha256 sums; local copies that match stand in for its
downloads. Preparing needs TensorFlow, which reading the prepared data set does not.
"""

import hashlib
import importlib.util
import os
import struct
import tempfile
from pathlib import Path

import tensorflow_datasets as tfds

from bigjax.data.tfds import FORMAT, find_builder, require_array_record
from bigjax.errors import DataError, EnvironmentProblem

# When the original files were compressed, in seconds since 1970: MTIME in their gzip headers.
# Debian's dataset-fashion-mnist holds the same data, compressed alike, under headers of its own.
COMPRESSED_AT = {
    'fashion_mnist': {
        'train-images-idx3-ubyte.gz': 1504176606,
        'train-labels-idx1-ubyte.gz': 1504176606,
        't10k-images-idx3-ubyte.gz': 1504176627,
        't10k-labels-idx1-ubyte.gz': 1504176627,
    }
}


def main(name: str, data_dir: Path | None = None, source: Path | None = None) -> Path:
    """`bigjax data prepare NAME [--data_dir=DIR] [--from=DIR]`; the folder of the prepared data.

    name: as TFDS has it, with an optional config and version ('fashion_mnist', 'mnist:3.0.1').
    data_dir: where prepared data sets live; by default $TFDS_DATA_DIR, or ~/tensorflow_datasets.
    source: a folder with local copies of the files that TFDS would download.
    Raises: DataError, EnvironmentProblem.
    """
    if importlib.util.find_spec('tensorflow') is None:
        raise EnvironmentProblem(
            'preparing a TFDS data set needs TensorFlow, which is not installed: pip install '
            "'bigjax[prepare]' (training does not need it, so another environment will do)"
        )
    folder = prepare(name, data_dir, source)
    print(f'{name} is prepared in {folder}')
    return folder


def prepare(name: str, data_dir: Path | None = None, source: Path | None = None) -> Path:
    """`main`, for a builder that may do without TensorFlow."""
    root = Path(data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()
    root.mkdir(parents=True, exist_ok=True)
    builder = find_builder(name, root, file_format=FORMAT)
    with tempfile.TemporaryDirectory(dir=root, prefix='downloads-') as temporary:
        manual = local_files(builder, source, Path(temporary)) if source else None
        settings = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
        try:
            builder.download_and_prepare(
                download_dir=temporary if source else None,
                download_config=settings,
                file_format=FORMAT,
            )
        except (OSError, AssertionError) as error:  # no connection; files to be fetched by hand
            files = ', '.join(info.filename for info in (builder.url_infos or {}).values())
            raise DataError(
                f'cannot prepare {name}: {error}; to do without a download give --from=DIR, a '
                f'folder with {files or "the files that its page in the TFDS catalogue names"}'
            ) from error
    require_array_record(builder)
    return Path(builder.data_path)


def local_files(builder: tfds.core.DatasetBuilder, source: Path, temporary: Path) -> Path:
    """A folder in which TFDS finds the files of `source`, their gzip headers restored.

    Raises: DataError for a file whose content is not what TFDS recorded.
    """
    source = source.expanduser().resolve()
    if not source.is_dir():
        raise DataError(f'no folder {source}; --from names the folder of the local files')
    manual = temporary / 'manual'
    manual.mkdir()
    for path in source.iterdir():
        (manual / path.name).symlink_to(path)
    for info in (builder.url_infos or {}).values():
        path = manual / (info.filename or '')
        if not path.is_file() or _sha256(path) == info.checksum:
            continue  # a file that is absent is downloaded, if it is needed
        if compressed_at := COMPRESSED_AT.get(builder.name, {}).get(path.name):
            content = path.read_bytes()
            path.unlink()  # the link; writing through it would change the user's file
            path.write_bytes(with_gzip_header(content, path.stem, compressed_at))
        if _sha256(path) != info.checksum:
            raise DataError(
                f'{source / path.name}: expected sha256 {info.checksum}, got {_sha256(path)} '
                f'({path.stat().st_size} bytes of {int(info.size)}); fetch the original file'
            )
    return manual


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def with_gzip_header(content: bytes, name: str, compressed_at: int) -> bytes:
    """gzip data with FNAME and MTIME (RFC 1952, section 2.3), for a header without optional fields.

    Any other data is returned unchanged.
    """
    if content[:2] != b'\x1f\x8b' or content[3:4] != b'\0':
        return content
    has_name, mtime = b'\x08', struct.pack('<I', compressed_at)
    header = content[:3] + has_name + mtime + content[8:10]
    return header + name.encode('latin-1') + b'\0' + content[10:]
