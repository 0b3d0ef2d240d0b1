"""Frankle and Carbin 2019: what is left of a trained network after pruning, put back to where it
began, learns as well as the whole; drawn again, it does not. LeNet-300-100 on MNIST, section 2."""

import json

import jax
import numpy as np
import optax

from bigjax.analysis import pruning
from bigjax.study import in_memory, plots
from bigjax.train.writers import replace_file

WIDTHS, BATCH, STEPS, LEARNING_RATE = (300, 100), 60, 2000, 1.2e-3
ROUNDS, SEEDS = 15, 3
RATES = {'hidden_.*/kernel': 0.2, 'read_out/kernel': 0.1}
"""The part of what is left that a round prunes; of the last layer half as much (section 2)."""
AGAIN = (7, 14, 15)
"""Rounds after which the network that is left is drawn again too, as a control."""


def measure(study, smoke, data):
    train, test = in_memory.read_images(data, smoke)
    results = []
    for seed in range(1 if smoke else SEEDS):
        rounds, steps = (2, 20) if smoke else (ROUNDS, STEPS)
        kept = study / f'seed_{seed}_{rounds}_rounds_{steps}_steps.json'
        if not kept.is_file():  # a run that was stopped goes on with the next seed
            curve = tickets(train, test, seed, rounds, steps)
            replace_file(kept, json.dumps(curve).encode())
        curve = json.loads(kept.read_text())
        results += [{'quantity': 'curve', 'seed': seed, **row} for row in curve]
        results += [{'seed': seed, **row} for row in summary(curve)]
    return results


def tickets(train, test, seed, rounds, steps):
    """Test accuracy in % of the ticket of each round, and of some of them drawn again."""
    model = in_memory.perceptron(train, (30, 10) if len(train.targets) < 5000 else WIDTHS)
    loss = in_memory.cross_entropy(model)

    def learnt(start, masks):
        optimizer = pruning.held(optax.adam(LEARNING_RATE), masks)
        params, key = pruning.apply(start, masks), jax.random.key(seed)
        params, _, _ = in_memory.train(
            loss,
            optimizer,
            params,
            optimizer.init(params),
            train,
            key,
            steps=steps,
            batch_size=BATCH,
        )
        return params, 100 * float(in_memory.accuracy(model, params, test))

    first, other = (model.init(jax.random.key(k))['params'] for k in (seed, 1000 + seed))
    masks, curve = pruning.everything(first), []
    for done in range(rounds + 1):
        left = 100 * pruning.density(masks, 'kernel')
        params, accuracy = learnt(first, masks)
        curve.append({'value': accuracy, 'left': left, 'which': 'ticket'})
        if done in AGAIN or rounds < ROUNDS:
            curve.append({'value': learnt(other, masks)[1], 'left': left, 'which': 'drawn again'})
        masks = pruning.prune(params, masks, RATES)
    return curve


def summary(curve):
    """What the paper claims, in points of accuracy."""
    ticket = {row['left']: row['value'] for row in curve if row['which'] == 'ticket'}
    again = {row['left']: row['value'] for row in curve if row['which'] == 'drawn again'}
    fifth = min(ticket, key=lambda left: abs(left - 21))
    few = [left for left in again if left <= 5] or [min(again)]
    gap = float(np.mean([ticket[left] - again[left] for left in few]))
    return [
        {'quantity': 'dense - ticket of 21 %', 'value': ticket[max(ticket)] - ticket[fifth]},
        {'quantity': 'ticket - drawn again, below 5 %', 'value': gap},
        {'quantity': 'left at 21 %', 'value': fifth},
    ]


def draw(results, figure):
    figure.set_size_inches(6.2, 3.6)
    axes = figure.subplots()
    curve = [row for row in results if row['quantity'] == 'curve']
    for which, colour in (('ticket', plots.BLUE), ('drawn again', plots.ORANGE)):
        seeds = [
            sorted(
                (r['left'], r['value']) for r in curve if (r['which'], r['seed']) == (which, seed)
            )
            for seed in sorted({row['seed'] for row in curve})
        ]
        lefts, values = np.mean(seeds, 0).T
        axes.plot(lefts, values, color=colour, label=which, marker='o', markersize=3)
        for seed in seeds:
            axes.plot(*zip(*seed, strict=True), color=colour, alpha=0.25, linewidth=1)
    axes.set(title='test accuracy of LeNet-300-100 on MNIST, %', xlabel='% of weights left')
    plots.log_scale(axes, 'x')
    axes.set_xticks([100, 50, 20, 10, 5], ['100', '50', '20', '10', '5'])
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.legend(loc='lower left')
