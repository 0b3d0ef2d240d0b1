import pytest
from PIL import Image
from rich.console import Console

from bigjax import cli
from bigjax.errors import ConfigError, DataError
from bigjax.study import points, reproduce
from bigjax.study.reproduce import Expected, judge

EXPERIMENT = """
from pathlib import Path

def measure(study, smoke, data):
    (study / 'seen.txt').write_text(f'{smoke} {data}')
    return [
        {'quantity': 'slope', 'value': 1.9, 'seed': 0},
        {'quantity': 'slope', 'value': 2.3, 'seed': 1, 'label': 'a, "b"'},
        {'quantity': 'peak', 'value': VALUE, 'is_train': False},
    ]

def draw(results, figure):
    assert results[1]['label'] == 'a, "b"' and 'label' not in results[0]
    assert results[2]['is_train'] is False and 'seed' not in results[2]
    axes = figure.add_subplot()
    axes.plot([row['seed'] for row in results if row['quantity'] == 'slope'])
"""
EXPECTED = """quantity,relation,value,tolerance,source
slope,relative,2,0.06,Table 1
peak,at_least,10,,"Figure 2, left"
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """An experiment `line` in `experiments/` of the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'experiments' / 'line'
    folder.mkdir(parents=True)

    def write(peak='12', expected=EXPECTED):
        (folder / 'experiment.py').write_text(EXPERIMENT.replace('VALUE', peak))
        (folder / 'expected.csv').write_text(expected)
        return folder

    return write


def test_a_full_run_writes_beside_the_experiment_and_judges_means(make, capsys):
    folder = make()
    assert cli.main(['reproduce', 'line', '--data=/somewhere']) == 0
    assert capsys.readouterr().out.splitlines() == [
        '| quantity | ours | paper | verdict |',
        '|---|---|---|---|',
        '| slope | 2.1 | 2 ± 6 % | met |',
        '| peak | 12 | ≥ 10 | met |',
    ]
    assert (folder.parents[1] / 'runs/line/seen.txt').read_text() == 'False /somewhere'
    assert (folder / 'results.csv').read_text().splitlines() == [
        'quantity,value,seed,label,is_train',
        'slope,1.9,0,,',
        'slope,2.3,1,"a, ""b""",',
        'peak,12,,,False',
    ]
    with Image.open(folder / 'figure.png') as image:
        assert image.size[0] > 500


def test_a_miss_is_told_by_the_exit_code(make, capsys):
    make(peak='9.99')
    assert cli.main(['reproduce', 'line']) == 1
    assert '| peak | 9.99 | ≥ 10 | missed |' in capsys.readouterr().out


def test_smoke_judges_no_number_and_leaves_the_folder_alone(make):
    folder = make(peak='9')
    assert cli.main(['reproduce', 'experiments/line', '--smoke', '--workdir=work']) == 0
    assert {path.name for path in folder.iterdir()} == {'experiment.py', 'expected.csv'}
    work = folder.parents[1] / 'work'
    assert {path.name for path in work.iterdir()} == {'seen.txt', 'results.csv', 'figure.png'}
    assert (work / 'seen.txt').read_text() == 'True None'
    make(peak='float("inf")')
    assert cli.main(['reproduce', 'line', '--smoke', '--workdir=work']) == 1


@pytest.mark.parametrize(
    ('relation', 'tolerance', 'good', 'bad'),
    [
        ('within', 0.5, (3.5, 4.5), (3.4, 4.6, float('nan'))),
        ('relative', 0.25, (3, 5), (2.9, 5.1, float('inf'))),
        ('at_least', 0.5, (3.5, 9), (3.4, float('nan'))),
        ('at_most', 0.5, (4.5, -9), (4.6, float('nan'))),
    ],
)
def test_relations(relation, tolerance, good, bad):
    line = Expected('x', relation, 4.0, tolerance, '')
    for value in (*good, *bad):
        (verdict,) = judge([line], [{'quantity': 'x', 'value': value}])
        assert verdict.met == (value in good), value
    (missing,) = judge([line], [{'quantity': 'y', 'value': 4.0}])
    assert not missing.met
    assert 'not measured' in reproduce.table([missing])[-1]


def test_what_is_wrong_is_named(make, tmp_path):
    folder = make(expected='quantity,relation,value,tolerance,source\nx,about,1,,\n')
    with pytest.raises(DataError, match=r'expected\.csv:2: .* a relation of within, relative'):
        reproduce.read_expected(folder / 'expected.csv')
    with pytest.raises(ConfigError, match="did you mean 'line'"):
        points.find('lime', ['experiment.py'])
    (folder / 'experiment.py').write_text('def measure(*_): return [{"value": 1}]')
    with pytest.raises(ConfigError, match=r'has no draw\(\)'):
        reproduce.load(folder)
    make()
    (folder / 'experiment.py').write_text(
        'def measure(*_): return [{"value": 1}]\ndef draw(*_): pass'
    )
    (folder / 'expected.csv').write_text(EXPECTED)
    with pytest.raises(DataError, match='expected keys quantity and value'):
        reproduce.reproduce(folder, tmp_path / 'work', None, True, Console(quiet=True))
