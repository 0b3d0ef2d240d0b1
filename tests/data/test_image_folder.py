import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigjax import schema
from bigjax.data import image_folder
from bigjax.data.core import Dataset, everything
from bigjax.errors import DataError, EnvironmentProblem


def save(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def colour(red: int, green: int, blue: int, height: int = 4, width: int = 4) -> np.ndarray:
    return np.broadcast_to(np.array([red, green, blue], np.uint8), (height, width, 3)).copy()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of flat images, a cat of value 10 * i and a dog of value 10 * i + 5."""
    for i in range(5):
        save(tmp_path / 'set' / 'cat' / f'{i}.png', colour(10 * i, 0, 1))
        save(tmp_path / 'set' / 'dog' / f'{i}.png', colour(10 * i + 5, 0, 2))
    (tmp_path / 'set' / '.thumbnails').mkdir()
    (tmp_path / 'set' / 'dog' / 'notes.txt').write_text('not an image')
    return tmp_path / 'set'


def load(folder: Path, **options) -> Dataset:
    options = {'image_size': (4, 4), 'cache_dir': str(folder.parent / 'cache'), **options}
    return image_folder.load(
        schema.build(image_folder.Config, {'path': str(folder), **options}, 'config.data')
    )


def test_classes_are_folders_and_rows_are_pixels(folder):
    data = load(folder)
    rows = everything(data.sources['train'])
    assert rows['inputs'].shape == (10, 4, 4, 3)
    assert rows['inputs'][:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 5, 15, 25, 35, 45]
    assert rows['targets'].tolist() == [0] * 5 + [1] * 5
    assert (rows['inputs'].dtype, rows['targets'].dtype) == (np.uint8, np.int32)
    spec, _ = data.prepare(data.sources['train'])
    assert spec.class_names == ('cat', 'dog')
    np.testing.assert_allclose(spec.mean, [22.5 / 255, 0, 1.5 / 255])
    assert data.labels(data.sources['train']).tolist() == [0] * 5 + [1] * 5


def test_folders_named_train_and_test_are_splits(folder):
    for split in ('train', 'test'):
        for name, value in (('cat', 1), ('dog', 2)):
            save(folder / 'split' / split / name / 'a.png', colour(value, 0, 0))
    data = load(folder / 'split')
    assert set(data.sources) == {'train', 'test'}
    assert everything(data.sources['test'])['inputs'][:, 0, 0, 0].tolist() == [1, 2]
    (folder / 'split' / 'test' / 'cow').mkdir()
    with pytest.raises(DataError, match=r'test/cow: .* has a class that train has not'):
        load(folder / 'split')


def test_images_are_covered_cropped_turned_and_converted(tmp_path):
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200  # what is left when the sides are cropped
    save(tmp_path / 'set' / 'a' / '0.png', wide)
    save(tmp_path / 'set' / 'a' / '1.png', colour(9, 9, 9, 8, 8)[..., 0])
    upright = np.zeros((4, 4, 3), np.uint8)
    upright[:2] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # shot upside down
    save(tmp_path / 'set' / 'a' / '2.jpg', upright[::-1, ::-1], exif=exif, quality=100)
    inputs = everything(load(tmp_path / 'set').sources['train'])['inputs']
    assert (inputs[0] == 200).all()
    assert (inputs[1] == 9).all()
    np.testing.assert_allclose(inputs[2].astype(int), upright, atol=3)
    grey = everything(load(tmp_path / 'set', channels=1).sources['train'])['inputs']
    assert grey.shape == (3, 4, 4, 1)


def test_images_are_decoded_once_until_a_file_changes(folder, monkeypatch):
    first = everything(load(folder).sources['train'])
    decode = image_folder.images.decode
    calls = []
    monkeypatch.setattr(
        image_folder.images, 'decode', lambda *args: calls.append(args) or decode(*args)
    )
    again = load(folder).sources['train']
    assert isinstance(again.arrays['inputs'], np.memmap)
    np.testing.assert_array_equal(everything(again)['inputs'], first['inputs'])
    assert not calls
    load(folder, image_size=(2, 2))
    assert len(calls) == 10

    save(folder / 'cat' / '0.png', colour(99, 0, 0))
    os.utime(folder / 'cat' / '0.png', ns=(1, 1))
    assert everything(load(folder).sources['train'])['inputs'][0, 0, 0, 0] == 99


def test_a_decoding_that_was_interrupted_is_done_again(folder, monkeypatch):
    decode = image_folder.images.decode
    left = [7]

    def killed_in_the_middle(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return decode(*args)

    monkeypatch.setattr(image_folder.images, 'decode', killed_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        load(folder)
    cache = folder.parent / 'cache'
    assert not [path for path in cache.iterdir() if path.is_dir()]
    # What a SIGKILL would have left: a partial folder with some of the rows.
    left[0] = 100
    load(folder)
    (final,) = [path for path in cache.iterdir() if path.is_dir()]
    final.rename(final.with_name(final.name + '.partial'))
    assert len(load(folder).sources['train']) == 10
    assert [path for path in cache.iterdir() if path.is_dir()] == [final]


def test_a_corrupt_image_is_named_or_left_out_up_to_a_cap(folder, caplog):
    broken = folder / 'dog' / '1.png'
    broken.write_bytes(broken.read_bytes()[:40])
    (folder / 'dog' / '2.png').write_bytes(b'')
    with pytest.raises(DataError, match=r'dog/1.png: not a readable image .*max_corrupt=0'):
        load(folder)
    with pytest.raises(DataError, match=r'dog/2.png: .*2 of 10 are corrupt.*max_corrupt=1'):
        load(folder, max_corrupt=1)
    for _ in range(2):  # decoded, then from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            rows = everything(load(folder, max_corrupt=2).sources['train'])
        assert rows['inputs'][:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 5, 35, 45]
        assert rows['targets'].tolist() == [0] * 5 + [1] * 3
        assert '2 of 10 images were corrupt and left out' in caplog.text


def test_what_is_missing_is_named(tmp_path, folder):
    with pytest.raises(DataError, match=r'no folder .*absent'):
        load(tmp_path / 'absent')
    (tmp_path / 'empty' / 'cat').mkdir(parents=True)
    with pytest.raises(DataError, match=r'no images \(.*\.png.*\) in .*empty/<class>/'):
        load(tmp_path / 'empty')
    (tmp_path / 'file').write_text('')
    with pytest.raises(EnvironmentProblem, match=r'cache .*set cache_dir'):
        load(folder, cache_dir=str(tmp_path / 'file'))
