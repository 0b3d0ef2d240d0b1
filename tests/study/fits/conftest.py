"""Published tables of runs, where they are at hand."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get('BIGJAX_DEV_DATA', Path(__file__).parents[3] / '../shared/data'))


@pytest.fixture
def data():
    """Path of a file of development data by its name."""

    def path(name: str) -> Path:
        if not (DATA / name).is_file():
            pytest.skip(f'no {name} in {DATA}; set BIGJAX_DEV_DATA')
        return DATA / name

    return path
