"""Approaches 1 to 3 and variable projection, against laws that are known and published fits."""

import csv

import numpy as np
import pytest
from scipy import optimize

from bigjax.errors import DataError
from bigjax.study.fits import (
    envelope,
    interpolated,
    isoflop,
    parametric,
    power,
    projection,
    published,
    solver,
    table,
)
from bigjax.study.fits.law import Law
from bigjax.study.fits.resample import Bootstrap
from tests.study.fits.surfaces import HOFFMANN, isoflops, scattered

FEW = parametric.grid()[::90]
PUBLISHED = [
    ('llama_3__raw_loss', 0.5000, 0.4994),
    ('llama_3__exp_loss', 0.4953, 0.5077),
    ('misfitting__fineweb_c4__transformer', 0.5234, 0.5243),
    ('marin_202603__comma__llama_2', 0.4264, 0.3551),
    ('marin_202603__dclm__llama_2', 0.4317, 0.3902),
    ('marin_202603__nemotron__llama_2', 0.4443, 0.3927),
]


def experiment(path, name):
    where = [('experiment', name), ('outlier', 'False')]
    return table.read(path, flops='budget', where=where)


@pytest.mark.parametrize(('name', 'by_isoflop', 'by_projection'), PUBLISHED)
def test_published_exponents(data, name, by_isoflop, by_projection):
    runs = experiment(data('isoflops.csv'), name)
    assert f'{isoflop.fit(runs).law.a:.4f}' == f'{by_isoflop:.4f}'
    assert f'{projection.fit(runs).law.a:.4f}' == f'{by_projection:.4f}'


@pytest.mark.parametrize(
    ('width', 'error'), [(2, -0.00326938), (8, -0.02902905), (16, -0.05100245)]
)
def test_the_bias_of_approach_2(width, error):
    found = isoflop.bias(HOFFMANN, np.logspace(17, 21, 5), 1e24, width)
    assert found.tokens == pytest.approx(error, abs=5e-9)
    assert found.b == pytest.approx(0, abs=1e-12)
    assert round(float(HOFFMANN.b), 7) == 0.5483871


def test_no_bias_where_the_exponents_are_equal():
    law = Law(1.69, 406.4, 410.7, 0.3, 0.3)
    found = isoflop.bias(law, np.logspace(17, 21, 5), 1e24, 8)
    assert np.allclose(found, 0, atol=1e-10)


@pytest.mark.parametrize('module', [parametric, projection], ids=['parametric', 'projection'])
def test_a_law_without_noise_is_found_exactly(module):
    runs = scattered(HOFFMANN, 60)
    fit = projection.fit(runs) if module is projection else parametric.fit(runs, starts=FEW)
    for name, value in HOFFMANN.values().items():
        assert fit.parameters[name] == pytest.approx(value, rel=1e-8)
    assert fit.status == 'converged'
    assert np.abs(fit.residuals).max() < 1e-10


def test_approach_3_is_no_worse_than_scipy_from_every_start():
    runs = scattered(HOFFMANN, 40, noise=0.01)
    n, d, logs = (np.log(x) for x in (runs.params, runs.tokens, runs.loss))

    def objective(point):
        a, b, e, alpha, beta = point
        terms = np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)])
        misses = np.abs(np.logaddexp.reduce(terms) - logs)
        return np.where(misses <= 1e-3, misses**2 / 2, 1e-3 * (misses - 5e-4)).sum()

    fit = parametric.fit(runs, starts=FEW)
    law = fit.law
    point = [np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta]
    assert objective(point) == pytest.approx(fit.objective, rel=1e-9)
    for start in FEW:
        assert fit.objective <= optimize.minimize(objective, start).fun * (1 + 1e-6)


def test_all_4500_starts_are_those_published():
    grid = parametric.grid()
    assert grid.shape == (4500, 5)
    assert len(np.unique(grid, axis=0)) == 4500
    assert {*grid[:, 0]} == {*grid[:, 1]} == {0, 5, 10, 15, 20, 25}
    assert {*grid[:, 2]} == {-1, -0.5, 0, 0.5, 1}
    assert {*grid[:, 3]} == {*grid[:, 4]} == {0, 0.5, 1, 1.5, 2}


@pytest.mark.parametrize('module', [parametric, projection], ids=['parametric', 'projection'])
def test_gradients(module):
    runs = scattered(HOFFMANN, 12, noise=0.01)
    rng = np.random.default_rng(0)
    logs = module is parametric
    targets = (np.log(runs.loss) if logs else runs.loss) * rng.uniform(0.9, 1.1, (3, 12))
    function = module.objective(runs, targets, rng.integers(0, 3, (3, 12)).astype(float))
    points = rng.uniform(0.2, 0.6, (3, 5)) if logs else rng.uniform(-1.5, -0.5, (3, 2))
    _, gradients = function(points, np.arange(3))
    for row in range(3):

        def value(point, row=row):
            return function(point[None], np.array([row]))[0][0]

        expected = optimize.approx_fprime(points[row], value, 1e-7)
        assert gradients[row] == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_non_negative_least_squares_are_scipys():
    rng = np.random.default_rng(0)
    columns, y = rng.normal(size=(50, 20, 3)), rng.normal(size=(50, 20))
    weights = rng.uniform(0.5, 2, (50, 20))
    found = projection.non_negative(columns, y, weights)
    zeros = 0
    for x, target, w, ours in zip(columns, y, np.sqrt(weights), found, strict=True):
        expected, _ = optimize.nnls(x * w[:, None], target * w)
        zeros += (expected == 0).sum()
        assert ours == pytest.approx(expected, abs=1e-10)
    assert zeros > 20


def test_the_solver_on_many_rosenbrocks():
    """Minimum (1, 1) of each, scaled; Rosenbrock 1960."""
    scale = np.geomspace(0.1, 10, 150)

    def function(points, rows):
        x, y = points.T
        s = scale[rows]
        value = s * ((1 - x) ** 2 + 100 * (y - x**2) ** 2)
        by_x = s * (-2 * (1 - x) - 400 * x * (y - x**2))
        return value, np.stack([by_x, s * 200 * (y - x**2)], axis=1)

    starts = np.random.default_rng(0).uniform(-2, 2, (150, 2))
    found = solver.minimise(function, starts)
    assert found.converged.all()
    assert found.points == pytest.approx(np.ones((150, 2)), abs=1e-6)


def test_projection_is_better_conditioned():
    runs = scattered(HOFFMANN, 40, noise=0.01)
    assert projection.fit(runs).condition_number < 3
    assert parametric.fit(runs, starts=FEW).condition_number > 50


@pytest.mark.parametrize('kind', ['runs', 'noise'])
@pytest.mark.parametrize('method', ['parametric', 'projection'])
def test_intervals_cover_the_truth_and_shrink_with_data(method, kind):
    widths = []
    for count in (40, 640):
        runs, how = scattered(HOFFMANN, count, noise=0.005), Bootstrap(60, kind)
        starts = parametric.grid()[[0, 1000, 2500]]
        fit = (
            projection.fit(runs, how)
            if method == 'projection'
            else parametric.fit(runs, how, starts)
        )
        low, high = fit.interval('a', 0.99)
        assert low < HOFFMANN.a < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_degenerate_laws_are_told():
    """Without any effect of N: A, alpha."""
    law = Law(1.69, 0.0, 410.7, 0.34, 0.28)
    fit = projection.fit(scattered(law, 40))
    assert fit.status == 'at a bound'
    assert 'A' in fit.hit_bounds


def test_a_parabola_without_its_minimum_says_which_way_to_widen():
    runs = isoflops(HOFFMANN, np.array([1e18, 1e19]), 8)
    best = HOFFMANN.best_params(1e19)
    small = (runs.flops < 5e18) | (runs.params < 0.6 * best)
    with pytest.raises(DataError, match=r'1e\+19 FLOPs: .* parameters .*widen it to more param'):
        isoflop.fit(runs.take(small))
    large = (runs.flops < 5e18) | (runs.params > 1.7 * best)
    with pytest.raises(DataError, match='widen it to fewer parameters'):
        isoflop.fit(runs.take(large))


def test_budgets_need_not_be_met_exactly():
    runs = isoflops(HOFFMANN, np.logspace(18, 21, 4), 4)
    rng = np.random.default_rng(0)
    tokens = runs.tokens * rng.uniform(0.99, 1.01, len(runs.loss))
    loss = HOFFMANN.loss(runs.params, tokens)
    found = isoflop.fit(table.runs(runs.params, tokens, loss, 6 * runs.params * tokens))
    assert len(found.minima.flops) == 4
    assert found.law.a == pytest.approx(HOFFMANN.a, abs=0.01)


def test_power_laws_are_weighted_regressions_of_logs():
    rng = np.random.default_rng(0)
    x, y, w = rng.uniform(1, 9, 8), rng.uniform(1, 9, 8), rng.uniform(1, 2, 8)
    slope, intercept = np.polyfit(np.log(x), np.log(y), 1, w=np.sqrt(w))
    found = power.fit(x, y, w)
    assert (found.exponent, np.log(found.coefficient)) == pytest.approx((slope, intercept))


def test_a_power_law_with_a_floor():
    x = np.geomspace(1e17, 1e21, 6)
    y = np.array([[1.7 + 900 * x**-0.15], [2.0 + 80 * x**-0.1]]).reshape(2, -1)
    found = power.fit_floored(x, y)
    assert np.allclose(found.E, [1.7, 2.0], atol=1e-3)
    assert np.allclose(found.gamma, [0.15, 0.1], atol=1e-3)


SETUPS = {  # source, val, param_count, decay, warmup, hparams
    'kaplan': ('train', 'kaplan', 'kaplan', 'long', 'base'),
    'head': ('val', 'standard', 'kaplan', 'long', 'base'),
    'warmup': ('val', 'standard', 'kaplan', 'short', 'base'),
    'cosine': ('val', 'standard', 'chinchilla', 'short', 'base'),
    'tuned': ('val', 'standard', 'const', 'short', 'tuned'),
}


def setup(name, source):
    columns = ('val', 'param_count', 'decay', 'warmup', 'hparams')
    where = [*zip(columns, SETUPS[name], strict=True), ('dataset', 'rw')]
    return [*where, (source, 'porian_summary_df')]


@pytest.mark.parametrize('name', SETUPS)
def test_porians_exponents(data, name):
    """From the optima as published: log-log, weighted by their spread; some budgets have none."""
    with data('porian_optimal_pairs.csv').open() as file:
        wanted = dict(setup(name, 'source_file'))
        rows = [row for row in csv.DictReader(file) if row.items() >= wanted.items()]
    rows = [row for row in rows if row['n']]
    flops, params, spread = (
        np.array([float(row[key]) for row in rows]) for key in ('flops', 'n', 'n_star_std')
    )
    expected = np.ravel(published.PORIAN_A[name])[0]
    assert power.fit(flops, params, spread**-2).exponent == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize('name', ['kaplan', 'tuned'])
def test_porians_intervals(data, name):
    """From the losses: noise of .002 nats moves the optima."""
    where = setup(name, 'source')
    runs = table.read(data('porian_isoflop_points.csv'), params='n', flops='flops', where=where)
    optima = interpolated.measure(runs, noise=0.002)
    _, low, high = published.PORIAN_A[name]
    found = np.percentile(optima.laws().exponent, [2.5, 97.5])
    assert found == pytest.approx([low, high], abs=0.002)


def curves(law, sizes, points=60):
    """Training curves of constant-rate runs on the law itself."""
    params = np.repeat(sizes, points)
    tokens = np.tile(np.geomspace(1, 600, points), len(sizes)) * params
    return table.runs(params, tokens, law.loss(params, tokens))


@pytest.mark.parametrize(('method', 'a'), published.HOFFMANN_A.items())
def test_each_approach_finds_an_exponent_as_published(method, a):
    """Hoffmann, table 2: laws with those exponents, fitted by those approaches."""
    law = Law(1.69, 406.4, 1000.0, 0.62 * (1 - a), 0.62 * a)
    if method == 'envelope':
        found = envelope.fit(curves(law, np.geomspace(1e7, 1e10, 60))).law
    elif method == 'isoflop':
        found = isoflop.fit(isoflops(law, np.logspace(18, 21, 5), 4)).law
    else:
        found = parametric.fit(isoflops(law, np.logspace(18, 21, 5), 4), starts=FEW).law
    assert f'{found.a:.2f}' == f'{a:.2f}'


def test_the_envelope():
    runs = curves(HOFFMANN, np.geomspace(1e7, 1e10, 60))
    fit = envelope.fit(runs, Bootstrap(50))
    assert fit.best_loss(1e20).value == pytest.approx(HOFFMANN.best_loss(1e20), rel=2e-3)
    assert fit.best_params(1e20).value == pytest.approx(HOFFMANN.best_params(1e20), rel=0.05)
    low, high = fit.interval('a', 0.99)
    assert low < HOFFMANN.a < high
    with pytest.raises(DataError, match='at least 3 training curves'):
        envelope.fit(curves(HOFFMANN, np.array([1e7, 1e8])))
    with pytest.raises(DataError, match='--curve'):
        envelope.fit(runs._replace(curve=np.repeat(['a', 'b', 'c'], 1200)))
