"""McCandlish et al. 2018: the gradient noise scale predicts the batch size at which a larger one
stops to pay. Both are measured on a perceptron that is trained to one loss at many batch sizes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigjax.analysis.noise_scale import from_examples
from bigjax.errors import DataError
from bigjax.study import in_memory, plots
from bigjax.study.fits.batch_size import TradeOff, fit_trade_off
from bigjax.study.in_memory import FASHION_MNIST, Rows

WIDTHS, TARGET, SEEDS = (64,), 0.5, 2
BATCHES = (1024, 512, 256, 128, 64, 32, 16, 8)
RATES = [1.6 * 2 ** (-k / 2) for k in range(13)]
"""Of gradient descent, highest first."""
EVALUATED, FULL = 2000, 20_000
MOST_STEPS = 3000
"""For the largest batch; half of it takes no more than twice the steps of the best run."""


def measure(study, smoke, data):
    rows, _ = in_memory.read_images(data or FASHION_MNIST, smoke)
    rows = Rows(*map(jnp.asarray, rows))
    model = in_memory.perceptron(rows, (16,) if smoke else WIDTHS)
    loss, target = in_memory.cross_entropy(model), 1.5 if smoke else TARGET
    batches, rates = ((64, 16), RATES[3:6:2]) if smoke else (BATCHES, RATES)
    results = []
    for seed in range(1 if smoke else SEEDS):
        start = model.init(jax.random.key(seed))['params']
        tuned, limit, left = {}, MOST_STEPS, rates
        for batch in batches:
            tuned[batch] = tune(loss, start, rows, batch, left, target, limit, seed)
            steps, rate = tuned[batch]
            # smaller batches want no higher rates
            limit, left = 3 * steps, rates[max(0, rates.index(rate) - 1) :]
            row = {'seed': seed, 'batch': batch, 'rate': rate}
            results.append({'quantity': 'steps', 'value': steps, **row})
        sizes = np.array(list(tuned))
        trade = fit_trade_off(sizes, np.array([steps for steps, _ in tuned.values()]))
        middle = min(batches, key=lambda size: abs(math.log(size / trade.critical_batch)))
        scales = noise_along(loss, start, rows, middle, *tuned[middle], seed)
        results += [
            {'quantity': 'scale', 'value': scale, 'seed': seed, 'part': part}
            for part, scale in scales
        ]
        scale = float(np.mean([scale for _, scale in scales]))
        results += [
            {'quantity': name, 'value': value, 'seed': seed}
            for name, value in {
                'S_min': trade.steps,
                'E_min': trade.examples,
                'critical batch size': trade.critical_batch,
                'noise scale, mean over the run': scale,
                'noise scale / critical batch size': scale / trade.critical_batch,
            }.items()
        ]
    return results


def tune(loss, start, rows, batch, rates, target, most, seed):
    """The fewest steps to `target` over the rates, and that rate. Raises: DataError where it is at
    the end of them, or none gets there."""
    best, chosen = math.inf, None
    for rate in rates:
        limit = min(most, 1.2 * best)
        steps = steps_to(loss, start, rows, batch, rate, target, limit, seed)
        if steps < best:
            best, chosen = steps, rate
        elif chosen is not None and rate < chosen / 2:
            break
    if chosen is None or (chosen in (RATES[0], RATES[-1]) and len(rates) > 3):
        raise DataError(f'batch size {batch}: expected the best rate inside {RATES}, got {chosen}')
    return best, chosen


def steps_to(loss, start, rows, batch, rate, target, limit, seed):
    """The step at which the loss on some of the rows first falls to `target`, in parts of a step by
    interpolation; infinity if it does not within `limit`."""
    evaluated, every = rows.first(EVALUATED), stride(batch)
    done, before = 0, float(EVALUATE(loss, start, evaluated))
    for params in along(loss, start, rows, batch, rate, seed):
        value = float(EVALUATE(loss, params, evaluated))
        done += every
        if value <= target:
            return done - every * (target - value) / (before - value)
        if done >= limit or not value < 10:
            return math.inf
        before = value


EVALUATE = jax.jit(lambda loss, params, rows: loss(params, rows), static_argnums=0)
GRADIENT = jax.jit(lambda loss, params, rows: jax.grad(loss)(params, rows), static_argnums=0)
SGD = optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)


def stride(batch):
    """Steps between two looks at the loss: about a fiftieth of the way."""
    return max(4, 512 // batch)


def along(loss, start, rows, batch, rate, seed):
    """The parameters after every `stride` steps."""
    params, state = start, SGD.init(start)
    state = state._replace(hyperparams={'learning_rate': jnp.float32(rate)})
    key = jax.random.key(seed)
    while True:
        key, now = jax.random.split(key)
        params, state, _ = in_memory.train(
            loss, SGD, params, state, rows, now, steps=stride(batch), batch_size=batch
        )
        yield params


def noise_along(loss, start, rows, batch, steps, rate, seed, points=16):
    """(part of the run, B_simple) along a run: tr S from 500 examples, |G|^2 from many."""
    looks = max(1, round(steps / stride(batch)))
    wanted = {round(looks * (i + 0.5) / points) for i in range(points)}
    full = rows.first(FULL)

    def single(params, row):
        return loss(params, Rows(row.inputs[None], row.targets[None]))

    found = []
    for look, params in enumerate(along(loss, start, rows, batch, rate, seed), 1):
        if look in wanted:
            trace = from_examples(single, params, rows.first(500)).trace
            grads = GRADIENT(loss, params, full)
            square = optax.tree.norm(grads, squared=True) - trace / len(full.targets)
            found.append((look / looks, float(trace / square)))
        if look >= looks:
            return found


def draw(results, figure):
    figure.set_size_inches(8.4, 3.4)
    left, right = figure.subplots(1, 2)
    named = {}
    for row in results:
        named.setdefault(row['quantity'], []).append(row)
    sizes = np.geomspace(8, 1024, 100)
    for seed in sorted({row['seed'] for row in results}):
        steps = [row for row in named['steps'] if row['seed'] == seed]
        left.plot([r['batch'] for r in steps], [r['value'] for r in steps], 'o', color=plots.BLUE)
        fit = TradeOff(*(named[name][seed]['value'] for name in ('S_min', 'E_min')))
        left.plot(sizes, fit.steps_at(sizes), color=plots.GREY, linewidth=1)
        scales = [row for row in named['scale'] if row['seed'] == seed]
        right.plot([r['part'] for r in scales], [r['value'] for r in scales], color=plots.ORANGE)
        critical = named['critical batch size'][seed]['value']
        right.axhline(critical, color=plots.BLUE, linestyle=plots.DASHED, linewidth=1)
    left.set(title='steps to the loss, and S_min + E_min / B', xlabel='batch size')
    plots.log_scale(left, 'x', 'y')
    right.set(title='noise scale; critical batch size (dashed)', xlabel='part of the run')
    plots.log_scale(right, 'y')
