import shutil

import pytest

from bigjax.train.loop import train
from tests.train.tiny import tiny_config

CONFIG = tiny_config(checkpoint={'every': 2, 'keep': 3})


@pytest.fixture(scope='session')
def config():
    return CONFIG


@pytest.fixture(scope='session')
def whole(tmp_path_factory):
    """A run that nothing happened to, with checkpoints at steps 2, 4 and 6; not to be written."""
    workdir = tmp_path_factory.mktemp('whole') / 'run'
    train(CONFIG, workdir)
    return workdir


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / 'run')
