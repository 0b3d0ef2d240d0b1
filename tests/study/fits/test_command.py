"""`bigjax fit`, from the table to the figures; predictions of what was held out."""

import csv
import json

import numpy as np
import pytest

from bigjax import cli
from bigjax.errors import ConfigError, DataError
from bigjax.study.fits import held_out, parametric, plots
from bigjax.study.fits.resample import NONE, Bootstrap
from tests.study.fits.surfaces import HOFFMANN, isoflops, scattered

BUDGETS = np.logspace(18, 21, 4)


@pytest.fixture
def path(tmp_path):
    """Four budgets of a known law, with noise of .2 %."""
    runs = isoflops(HOFFMANN, BUDGETS, 6, points=9, noise=0.002)
    path = tmp_path / 'runs.csv'
    with path.open('w') as file:
        writer = csv.writer(file)
        writer.writerow(['params', 'tokens', 'flops', 'loss'])
        writer.writerows(zip(*runs[:4], strict=True))
    return path


def test_json(path, capsys):
    assert cli.main(['fit', str(path), '--json', '--bootstrap=50']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['method'] == 'projection'
    assert found['status'] == 'converged'
    assert found['flops_convention'] == "column 'flops'"
    assert found['budgets'] == pytest.approx(BUDGETS[:-1])
    low, high = found['parameters']['a']['interval']
    assert low < HOFFMANN.a < high
    assert found['optimum'][0]['flops'] == pytest.approx(1e21)
    loss, params = found['held_out'][1:]
    assert loss['quantity'] == 'L*'
    assert loss['measured'] == pytest.approx(HOFFMANN.best_loss(1e21), rel=0.005)
    assert loss['predicted']['value'] == pytest.approx(HOFFMANN.best_loss(1e21), rel=0.01)
    assert params['quantity'] == 'N*'
    assert params['predicted']['value'] == pytest.approx(HOFFMANN.best_params(1e21), rel=0.3)


@pytest.mark.parametrize('method', ['isoflop', 'parametric'])
def test_the_table_and_the_figures(path, tmp_path, capsys, method, monkeypatch):
    few = parametric.grid()[::90]
    monkeypatch.setattr(parametric, 'grid', lambda: few)
    out = tmp_path / 'out'
    flags = [f'--method={method}', '--bootstrap=20', f'--plot={out}/all.png', f'--out={out}']
    assert cli.main(['fit', str(path), *flags]) == 0
    text = capsys.readouterr().out
    assert f'{method}: converged' in text
    assert "27 runs, 3 budgets, 1e+18 to 1e+20 FLOPs (column 'flops'; C = 6 N D)" in text
    assert 'held out: 9 runs, 1 budget, 1e+21 FLOPs' in text
    for name in ('all', 'isoflops', 'frontier', 'residuals'):
        assert (out / f'{name}.png').read_bytes().startswith(b'\x89PNG')
    assert json.loads((out / 'fit.json').read_text())['method'] == method


def test_six_nd_is_said(path, capsys):
    assert cli.main(['fit', str(path), '--flops=6ND', '--bootstrap=0', '--hold_out=0']) == 0
    text = capsys.readouterr().out
    assert 'C = 6 N D, assumed: no column of FLOPs was named' in text
    assert 'held out' not in text
    assert 'interval' not in text.split('parameter')[0]


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--params=N'], "no column 'N'"),
        (['--hold_out=3'], 'expected at least 5 budgets'),
        (['--hold_out=-1'], 'expected 0 or more budgets'),
        (['--bootstrap=-1'], 'expected samples and seed of 0 or more'),
        (['--where=params'], 'expected COLUMN=VALUE'),
        (['--method=envelope'], 'at least 3 training curves'),
        (['--bootstrap=0', '--plot=/dev/null/x.png'], 'cannot write /dev/null/x.png'),
    ],
)
def test_errors_take_one_line(path, capsys, flags, message):
    assert cli.main(['fit', str(path), *flags]) == 78
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count('\n') == 1


def test_a_held_out_budget_without_an_optimum_is_said():
    runs = isoflops(HOFFMANN, BUDGETS, 6)
    runs = runs.take((runs.flops < 5e20) | (runs.params < 0.5 * HOFFMANN.best_params(1e21)))
    tested = held_out.judge(runs, 'projection', NONE)
    assert [miss.quantity for miss in tested.misses] == ['best run']
    assert 'widen it to more parameters' in tested.notes[0]


def test_without_noise_nothing_is_missed():
    for method in ('projection', 'isoflop'):
        tested = held_out.judge(isoflops(HOFFMANN, BUDGETS, 1.5), method, Bootstrap(20))
        assert len(tested.misses) >= 2
        for miss in tested.misses:
            assert miss.relative == pytest.approx(0, abs=0.002)


def test_coverage_is_what_the_interval_says():
    """Of 20 noisy worlds, most 95 % intervals have the held-out optimum's loss."""
    inside = 0
    for seed in range(20):
        runs = scattered(HOFFMANN, 60)
        rng = np.random.default_rng(seed)
        runs = runs._replace(loss=runs.loss * np.exp(0.01 * rng.normal(size=60)))
        fit = held_out.judge(runs, 'projection', Bootstrap(40), hold_out=0).fit
        low, high = fit.best_loss(1e22).interval
        inside += low <= HOFFMANN.best_loss(1e22) <= high
    assert inside >= 15


def test_unknown_methods_and_quantities():
    runs = isoflops(HOFFMANN, BUDGETS, 4)
    with pytest.raises(ConfigError, match="unknown method 'isoflops': did you mean 'isoflop'"):
        held_out.judge(runs, 'isoflops', NONE)
    fit = held_out.judge(runs, 'isoflop', NONE).fit
    with pytest.raises(ConfigError, match="isoflop has no 'alpha'"):
        fit.interval('alpha')
    with pytest.raises(ConfigError, match='knows the optimum of a budget only'):
        fit.loss(1e9, 1e10)
    with pytest.raises(DataError, match='at least 3 different values of N'):
        held_out.judge(runs.take(runs.params == runs.params[0]), 'projection', NONE, 0)


def test_figures_show_the_data():
    runs = isoflops(HOFFMANN, BUDGETS, 6, noise=0.002)
    tested = held_out.judge(runs, 'isoflop', Bootstrap(20))
    (ax, _) = plots.isoflops(tested).axes
    assert sum(len(dots.get_offsets()) for dots in ax.collections) == len(runs.loss)
    assert len([line for line in ax.lines if len(line.get_xdata()) == 100]) == 3
    params, loss = plots.frontier(tested).axes
    assert [*params.lines[0].get_ydata()] == pytest.approx(
        [*tested.fit.law.best_params(params.lines[0].get_xdata())]
    )
    assert any('held out' in text.get_text() for text in loss.get_legend().get_texts())
    rates = np.geomspace(1e-4, 1e-2, 5)
    curves = {'width 64': (rates, np.log(rates / 1e-3) ** 2)}
    (ax,) = plots.valleys(curves, {'width 64': 1e-3}).axes
    assert ax.lines[1].get_xdata()[0] == 1e-3
