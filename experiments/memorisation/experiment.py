"""Zhang et al. 2017: a network that generalises also fits labels that are drawn at random."""

import jax
import numpy as np
import optax

from bigjax.study import in_memory, plots
from bigjax.study.in_memory import FASHION_MNIST, Rows

EXAMPLES, WIDTHS, BATCH, EPOCHS, EVERY = 2000, (512,), 128, 300, 5
LEARNING_RATE = 2e-3
LABELS = {'true': 0.0, 'half drawn': 0.5, 'drawn': 1.0}
"""By name, the part of the training labels that are drawn at random."""


def measure(study, smoke, data):
    train, test = in_memory.read_images(data or FASHION_MNIST, smoke)
    train = train.first(100 if smoke else EXAMPLES)
    model = in_memory.perceptron(train, (64,) if smoke else WIDTHS)
    results = []
    for name, part in LABELS.items():
        curve = fit(model, relabelled(train, part), test, 5 if smoke else EPOCHS)
        results += [
            {'quantity': 'curve', 'value': accuracy, 'labels': name, 'epoch': epoch, 'test': tested}
            for epoch, accuracy, tested in curve
        ]
        epoch, accuracy, tested = curve[-1]
        results += [
            {'quantity': f'train accuracy, {name} labels', 'value': accuracy},
            {'quantity': f'test accuracy, {name} labels', 'value': tested},
            {'quantity': f'epochs to fit, {name} labels', 'value': epoch},
        ]
    return results


def relabelled(rows, part):
    """The same inputs; each label is drawn anew with chance `part`."""
    rng = np.random.default_rng(0)
    drawn = rng.random(len(rows.targets)) < part
    targets = np.where(drawn, rng.integers(0, 10, len(rows.targets)), rows.targets)
    return Rows(rows.inputs, np.int32(targets))


def fit(model, train, test, epochs):
    """Epoch, train and test accuracy, every so many epochs until every label is fitted."""
    loss = in_memory.cross_entropy(model)
    steps = max(1, len(train.targets) // BATCH)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, epochs * steps))
    params = model.init(jax.random.key(0))['params']
    state, curve = optimizer.init(params), []
    for epoch in range(EVERY, epochs + 1, EVERY):
        params, state, _ = in_memory.train(
            loss,
            optimizer,
            params,
            state,
            train,
            jax.random.key(epoch),
            steps=EVERY * steps,
            batch_size=BATCH,
        )
        fitted = float(in_memory.accuracy(model, params, train))
        curve.append((epoch, fitted, float(in_memory.accuracy(model, params, test))))
        if fitted == 1.0:
            break
    return curve


def draw(results, figure):
    figure.set_size_inches(8.4, 3.4)
    left, right = figure.subplots(1, 2, sharey=True)
    for name, colour in zip(LABELS, plots.GROUP_COLORS, strict=False):
        curve = [r for r in results if r['quantity'] == 'curve' and r['labels'] == name]
        epochs = [row['epoch'] for row in curve]
        left.plot(epochs, [row['value'] for row in curve], color=colour, label=f'{name} labels')
        right.plot(epochs, [row['test'] for row in curve], color=colour)
    left.set(title='accuracy on train', xlabel='epochs', ylim=(0, 1.02))
    left.legend(loc='lower right')
    right.axhline(0.1, color=plots.GREY, linestyle=plots.DASHED, linewidth=1)
    right.set(title='accuracy on test, true labels', xlabel='epochs')
