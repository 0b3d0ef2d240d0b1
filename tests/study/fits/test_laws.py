"""Formulas: optima, published laws, batch sizes, learning rates, FLOP conventions."""

import numpy as np
import pytest
from scipy import optimize

from bigjax.analysis import noise_scale
from bigjax.errors import ConfigError, DataError
from bigjax.study.fits import batch_size, published, rates
from bigjax.study.fits.law import Frontier, Law

LAW = published.HOFFMANN


def test_the_optimum_is_where_no_other_split_is_better():
    for flops in (1e18, 1e24):

        def loss(log_params, flops=flops):
            params = np.exp(log_params)
            return LAW.loss(params, flops / (6 * params))

        found = optimize.minimize_scalar(loss, bounds=(10, 40), options={'xatol': 1e-10})
        assert LAW.best_params(flops) == pytest.approx(np.exp(found.x), rel=1e-5)
        assert LAW.best_loss(flops) == pytest.approx(found.fun, rel=1e-12)
        assert 6 * LAW.best_params(flops) * LAW.best_tokens(flops) == pytest.approx(flops)


def test_another_cost_of_a_parameter_moves_the_budget():
    law = Law(1.69, 406.4, 410.7, 0.34, 0.28, cost=8.0)
    assert law.best_params(8e18) == pytest.approx(LAW.best_params(6e18))


def test_hoffmann():
    """Table 2: exponents of the third approach, from alpha and beta before they were rounded."""
    assert Law(1.69, 406.4, 410.7, 0.3392, 0.2849).a == pytest.approx(
        published.HOFFMANN_A['parametric'], abs=0.005
    )
    assert published.HOFFMANN_A == {'envelope': 0.50, 'isoflop': 0.49, 'parametric': 0.46}


def test_kaplan():
    assert published.KAPLAN_N(N=8.8e13) == pytest.approx(1)
    assert published.KAPLAN_D(D=5.4e13) == pytest.approx(1)
    assert published.KAPLAN_C(C=3.1e8 * 8.64e19) == pytest.approx(1)
    assert published.KAPLAN_N(N=8.8e13 / 10) == pytest.approx(10**0.076)
    assert published.KAPLAN_D(D=5.4e13 / 10) == pytest.approx(10**0.095)
    assert published.KAPLAN_C(C=3.1e7 * 8.64e19) == pytest.approx(10**0.050)


def test_learning_rates_and_batches_of_others():
    """DeepSeek 67B on 2T tokens trained at 3.2e-4 with 4608 sequences of 4096 tokens."""
    flops = 1e24
    assert published.DEEPSEEK_RATE(C=flops) == pytest.approx(0.3118 * 1e-3)
    assert published.DEEPSEEK_BATCH(C=1e20) == pytest.approx(0.292 * 10**6.542)
    large = 1.1e24
    assert published.DEEPSEEK_RATE(C=large) == pytest.approx(3.2e-4, rel=0.05)
    assert published.DEEPSEEK_BATCH(C=large) == pytest.approx(4608 * 4096, rel=0.15)
    assert published.STEP_RATE(N=1e9, D=1e11) == pytest.approx(1.79 * 10 ** (-6.417 + 3.377))
    assert published.STEP_BATCH(D=1e10) == pytest.approx(0.58 * 10**5.71)
    with pytest.raises(ConfigError, match='expected N and D, got C'):
        published.STEP_RATE(C=1e20)


def test_a_fit_of_learning_rates_finds_the_law():
    rng = np.random.default_rng(0)
    params, tokens = 10 ** rng.uniform(7, 10, 30), 10 ** rng.uniform(9, 12, 30)
    found = rates.fit(published.STEP_RATE(N=params, D=tokens), N=params, D=tokens)
    assert found.coefficient == pytest.approx(1.79)
    assert found.exponents == pytest.approx({'N': -0.713, 'D': 0.307})
    with pytest.raises(DataError, match='varied independently'):
        rates.fit(params, N=params, D=20 * params)


def test_the_valley_of_learning_rates():
    tried = np.geomspace(1e-4, 1e-2, 7)
    loss = 3 + 0.2 * (np.log(tried) - np.log(1.3e-3)) ** 2
    assert rates.valley(tried, loss) == pytest.approx(1.3e-3)
    with pytest.raises(DataError, match='widen it to higher ones'):
        rates.valley(tried[:3], loss[:3])
    with pytest.raises(DataError, match='widen it to lower ones'):
        rates.valley(tried[-3:], loss[-3:])


def test_the_noise_scale_from_two_batch_sizes():
    """|G|^2 = 25 and tr S = 40: at batch B the mean squared norm is 25 + 40 / B."""
    exact = [25 + 40 / batch for batch in (8, 64)]
    found = noise_scale.from_two_sizes(8, 64, *exact)
    assert (found.trace, found.square, found.scale) == pytest.approx((40, 25, 1.6))


def test_steps_trade_for_examples():
    batch = np.array([16, 64, 256, 1024])
    law = batch_size.TradeOff(1000, 128_000)
    steps, examples = law.steps_at(batch), law.examples_at(batch)
    assert (steps / 1000 - 1) * (examples / 128_000 - 1) == pytest.approx(np.ones(4))
    assert law.critical_batch == 128
    assert law.steps_at(128) == 2000
    found = batch_size.fit_trade_off(batch, steps)
    assert found == pytest.approx(law)
    with pytest.raises(DataError, match='add larger ones'):
        batch_size.fit_trade_off(batch, 1e6 / batch**1.2)


def test_a_frontier_keeps_its_own_exponents():
    law = Frontier(n=0.1, a=0.5, d=2.0, b=0.45, E=1.7, K=100.0, gamma=0.1)
    assert law.best_params(1e20) == pytest.approx(1e9)
    assert law.best_tokens(1e20) == pytest.approx(2e9)
    assert law.best_loss(1e20) == pytest.approx(2.7)
