import gzip
import hashlib
import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow_datasets as tfds

from bigjax.data import prepare
from bigjax.errors import DataError, EnvironmentProblem

NAME = 't10k-labels-idx1-ubyte.gz'
DEBIAN = Path('/usr/share/datasets/fashion-mnist')


def gzipped(name: str, compressed_at: int) -> bytes:
    """By Python's own gzip, which writes the name without its .gz."""
    file = io.BytesIO()
    with gzip.GzipFile(name, 'wb', fileobj=file, mtime=compressed_at) as writer:
        writer.write(b'labels')
    return file.getvalue()


ORIGINAL = gzipped(NAME, prepare.COMPRESSED_AT['fashion_mnist'][NAME])
REPACKED = gzipped('', 1591347949)


def builder_of(*originals: bytes) -> SimpleNamespace:
    """What `local_files` needs of a builder: the files that TFDS recorded."""
    infos = {
        f'http://host/{i}': tfds.download.checksums.UrlInfo(
            tfds.core.utils.Size(len(content)), hashlib.sha256(content).hexdigest(), NAME
        )
        for i, content in enumerate(originals)
    }
    return SimpleNamespace(name='fashion_mnist', url_infos=infos)


def test_the_header_is_restored_and_the_source_left_as_it_is(tmp_path):
    source = tmp_path / 'source'
    source.mkdir()
    (source / NAME).write_bytes(REPACKED)
    (source / 'other.txt').write_text('kept')
    manual = prepare.local_files(builder_of(ORIGINAL), source, tmp_path)
    assert REPACKED != ORIGINAL
    assert (manual / NAME).read_bytes() == ORIGINAL
    assert (source / NAME).read_bytes() == REPACKED
    assert (manual / 'other.txt').read_text() == 'kept'


def test_an_original_is_used_as_it_is_and_an_absent_file_is_left_to_tfds(tmp_path):
    source = tmp_path / 'source'
    source.mkdir()
    assert not list(prepare.local_files(builder_of(ORIGINAL), source, tmp_path).iterdir())
    (tmp_path / 'manual').rmdir()
    (source / NAME).write_bytes(ORIGINAL)
    manual = prepare.local_files(builder_of(ORIGINAL), source, tmp_path)
    assert (manual / NAME).samefile(source / NAME)


@pytest.mark.parametrize('content', [b'', b'no gzip', REPACKED[:-1] + b'!', ORIGINAL + b'!'])
def test_a_file_of_other_content_is_refused(tmp_path, content):
    source = tmp_path / 'source'
    source.mkdir()
    (source / NAME).write_bytes(content)
    with pytest.raises(DataError, match=rf'source/{NAME}: expected sha256 .*, got .*fetch'):
        prepare.local_files(builder_of(ORIGINAL), source, tmp_path)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason='no package dataset-fashion-mnist')
def test_fashion_mnist_of_debian_gets_the_checksums_of_tfds(tmp_path):
    builder = tfds.builder('fashion_mnist', data_dir=tmp_path)
    manual = prepare.local_files(builder, DEBIAN, tmp_path)
    for info in builder.url_infos.values():
        content = (manual / info.filename).read_bytes()
        assert hashlib.sha256(content).hexdigest() == info.checksum
        assert len(content) == info.size


def test_what_is_missing_is_said_with_its_cure(tmp_path, monkeypatch):
    with pytest.raises(
        DataError, match=r"no data set 'fashion_mnits' .*; did you mean 'fashion_mnist"
    ):
        prepare.prepare('fashion_mnits', tmp_path)
    with pytest.raises(DataError, match=r'no folder .*absent; --from names'):
        prepare.prepare('fashion_mnist', tmp_path, tmp_path / 'absent')
    monkeypatch.setattr(prepare.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'bigjax\[prepare\]'"):
        prepare.main('fashion_mnist', tmp_path)
