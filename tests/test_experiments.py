"""Every experiment runs, tiny; and what is committed of it agrees with itself.

Without an argument an experiment finds its data itself; `BIGJAX_DATA` names another folder.
"""

import os
from pathlib import Path

import pytest
from rich.console import Console

from bigjax.study import reproduce

EXPERIMENTS = sorted(
    path.parent for path in (Path(__file__).parents[1] / 'experiments').glob('*/experiment.py')
)
every_experiment = pytest.mark.parametrize('folder', EXPERIMENTS, ids=lambda folder: folder.name)


def test_every_folder_is_an_experiment():
    root = Path(__file__).parents[1] / 'experiments'
    folders = {path.parent for path in root.glob('*/*.*')} if root.is_dir() else set()
    assert folders == set(EXPERIMENTS)


@every_experiment
def test_smoke(folder, tmp_path):
    data = os.environ.get('BIGJAX_DATA')
    console = Console(quiet=True)
    assert reproduce.reproduce(folder, tmp_path, data and Path(data), True, console)
    assert (tmp_path / 'figure.png').stat().st_size > 5000


@every_experiment
def test_the_readme_says_how_and_expectations_have_sources(folder):
    text = (folder / 'README.md').read_text()
    assert f'bigjax reproduce {folder.name}' in text
    expected = reproduce.read_expected(folder / 'expected.csv')
    assert expected
    assert all(line.source for line in expected)


@every_experiment
def test_the_table_is_that_of_the_results(folder):
    if not (folder / 'results.csv').is_file():
        pytest.skip('not run in full yet')
    results = reproduce.read_results(folder / 'results.csv')
    verdicts = reproduce.judge(reproduce.read_expected(folder / 'expected.csv'), results)
    text = (folder / 'README.md').read_text()
    for line in reproduce.table(verdicts):
        assert line in text
    assert (folder / 'figure.png').is_file()
