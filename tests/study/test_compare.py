import csv
import json
import re

import numpy as np
import pytest
from rich.console import Console

from bigjax import cli, schema
from bigjax.config import resolve
from bigjax.errors import DataError
from bigjax.study import compare, ledger, plots, report
from bigjax.train.writers import Writer

CONFIG = {'model': 'mlp', 'task': 'classification', 'data': 'digits', 'train': {'steps': 30}}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Two rates with seeds 0 and 1; one that diverged, one that failed and left no metrics."""
    monkeypatch.setenv('COLUMNS', '160')
    folder = tmp_path / 'rates'
    for rate in (0.1, 0.5):
        for seed in (0, 1):
            write(folder, f'r{rate}s{seed}', rate, seed, [2.0, 1.0 + seed, rate + seed])
    write(folder, 'wild', 9.0, 0, [2.0, 1e9, float('nan')])
    ledger.append(folder, 'failed', 'none', error='bigjax: [no] data', overrides={'seed': 7})
    return folder


def write(folder, name, rate, seed, losses):
    run = folder / ledger.RUNS / name
    run.mkdir(parents=True)
    overrides = {'optimizer.learning_rate': rate, 'seed': seed}
    config = resolve({**CONFIG, 'optimizer': {'learning_rate': rate}, 'seed': seed})
    (run / 'config.json').write_text(json.dumps(schema.to_dict(config)))
    with Writer(run) as writer:
        work = {'params': 650, 'params_nonembedding': 650, 'tokens': 8, 'examples': 4, 'flops': 100}
        writer.event('start', formula='f', steps=30, **work)
        for step, loss in zip((10, 20, 30), losses, strict=True):
            writer.metrics(step, {'train/loss': loss, 'val/loss': 2 * loss, 'val/accuracy': 0.5})
        writer.event('diverged' if np.isnan(losses[-1]) else 'done', 30)
    ledger.append(folder, 'started', name, overrides=overrides)
    event, row = ledger.outcome(run)
    ledger.append(folder, event, name, overrides=overrides, **row)


def said(capsys):
    return [' '.join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_ls_of_a_study(study, capsys):
    assert cli.main(['ls', str(study)]) == 0
    lines = said(capsys)
    assert lines[1] == 'r0.1s0 learning_rate=0.1 seed=0 done 30 val/accuracy 0.5 0:00'
    assert lines[5].startswith('wild learning_rate=9 seed=0 diverged 30')
    assert lines[6] == 'none seed=7 failed bigjax: [no] data 0:00'


def test_ls_below_a_folder(study, capsys):
    (study / 'ledger.jsonl').unlink()
    assert cli.main(['ls', str(study.parent)]) == 0
    lines = said(capsys)
    assert lines[1] == 'rates/runs/r0.1s0 done 30 val/accuracy 0.5 0:00'
    assert [line.split()[1] for line in lines[1:]] == ['done'] * 4 + ['diverged']
    with pytest.raises(DataError, match='no runs in'):
        compare.ls(study / 'runs' / 'wild' / 'plots', Console(quiet=True))


def test_a_run_without_its_process_is_stopped(study, capsys):
    ledger.append(study, 'started', 'r0.1s0')
    cli.main(['ls', str(study)])
    assert ' stopped ' in said(capsys)[1]


def test_csv_of_a_ledger(study, capsys, tmp_path):
    assert cli.main(['ls', str(study), '--csv']) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    first = rows[0]
    assert (first['params'], first['tokens'], first['flops']) == ('650', '240', '3000')
    assert float(first['loss']) == float(first['val/loss']) == pytest.approx(0.2)
    assert first['optimizer.learning_rate'] == '0.1'
    assert [row['loss'] for row in rows[4:]] == ['', '']  # diverged, failed


def test_diff_has_what_differs(study, capsys):
    runs = [str(study / 'runs' / name) for name in ('r0.1s0', 'r0.5s1')]
    assert cli.main(['diff', *runs]) == 0
    lines = said(capsys)
    assert lines[0] == 'r0.1s0 r0.5s1'
    assert {'optimizer.learning_rate 0.1 0.5', 'seed 0 1', 'val/loss 0.2 3'} <= {*lines}
    assert not any(line.startswith(('model', 'train.')) for line in lines)


def test_runs_that_differ_in_seed_alone_are_a_group(study):
    folders = sorted((study / 'runs').iterdir())
    groups, keys = compare.grouped([report.read(folder) for folder in folders])
    assert keys == ['optimizer.learning_rate']
    assert {name: [run.name for run in runs] for name, runs in groups.items()} == {
        'learning_rate=0.1': ['r0.1s0', 'r0.1s1'],
        'learning_rate=0.5': ['r0.5s0', 'r0.5s1'],
        'learning_rate=9': ['wild'],
    }


def test_runs_that_hardly_agree_have_the_names_of_their_folders(tmp_path):
    for name, widths in (('a', (8,)), ('b', tuple(range(40, 80)))):
        (tmp_path / name).mkdir()
        model = {'name': 'mlp', 'widths': widths}
        config = schema.to_dict(resolve({**CONFIG, 'model': model}))
        (tmp_path / name / 'config.json').write_text(json.dumps(config))
        with Writer(tmp_path / name) as writer:
            writer.metrics(1, {'train/loss': 1.0})
    groups, _ = compare.grouped([report.read(tmp_path / name) for name in 'ab'])
    assert list(groups) == ['widths=[8]', 'b']


def test_a_band_goes_from_the_lowest_to_the_highest():
    one = np.array([0, 10, 20]), np.array([3.0, 2.0, 1.0])
    other = np.array([0, 5, 10]), np.array([5.0, 5.0, np.nan])
    steps, low, mean, high = plots._band([one, other])
    np.testing.assert_array_equal(steps, [0, 5, 10, 20])
    np.testing.assert_array_equal(low, [3, 2.5, 2, 1])
    np.testing.assert_array_equal(mean, [4, 3.75, 2, 1])
    np.testing.assert_array_equal(high, [5, 5, 2, 1])


def test_what_diverges_does_not_hide_the_rest():
    steps = np.array([0, 1, 2])
    fine = {'train/loss': (steps, np.array([2.0, 1.5, 1.0]))}
    wild = {'train/loss': (steps, np.array([2.0, 1e9, np.nan]))}
    figure = plots.overlaid({'a': [fine], 'b': [wild]})
    assert figure.axes[0].get_ylim()[1] <= 4
    assert figure.axes[0].get_yscale() == 'linear'


@pytest.mark.parametrize('count', [1, 7, 8, 40])
def test_any_number_of_groups_is_drawn(count, tmp_path):
    series = {'val/loss': (np.array([1, 2]), np.array([2.0, 1.0]))}
    figure = plots.overlaid({f'g{index}': [series] for index in range(count)})
    plots.save(figure, tmp_path / 'x.png')
    assert len({line.get_color() if isinstance(line.get_color(), str) else tuple(line.get_color())
                for line in figure.axes[0].lines}) == count  # fmt: skip


def test_the_page_of_a_study(study, capsys):
    assert cli.main(['report', str(study)]) == 0
    assert capsys.readouterr().out.strip() == str(study / 'report.html')
    page = (study / 'report.html').read_text()
    assert not re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?!data:)\w', page)
    assert 'http://' not in page
    assert 'https://' not in page
    text = ' '.join(re.sub('<[^>]*>', ' ', page.split('</style>')[1]).split())
    assert '5 runs, 3 settings' in text
    assert '0.1 done 2 1.2 ± 1.414' in text  # val/loss 0.2 and 2.2
    assert '9.0 diverged 1 nan' in text


def test_a_page_of_runs(study, capsys):
    runs = [str(study / 'runs' / name) for name in ('r0.1s0', 'r0.5s1')]
    out = study / 'pages' / 'two.html'
    assert cli.main(['report', *runs, f'--out={out}']) == 0
    assert '2 runs, 2 settings' in out.read_text()
