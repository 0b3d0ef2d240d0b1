"""Belkin et al. 2019: the test error peaks where the width meets the number of examples, and falls
again beyond it. Random ReLU features, the least squares solution of minimum norm, in float64."""

import numpy as np
from sklearn.datasets import load_digits

from bigjax.study import plots

EXAMPLES, NOISE, SEEDS = 1000, 0.1, 3
RATIOS = (0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0)


def measure(study, smoke, data):
    results = []
    for seed in range(1 if smoke else SEEDS):
        curve = {
            ratio: test_error(seed, 100 if smoke else EXAMPLES, ratio, *digits())
            for ratio in RATIOS
        }
        results += [
            {'quantity': 'curve', 'value': error, 'squared': squared, 'ratio': ratio, 'seed': seed}
            for ratio, (error, squared) in curve.items()
        ]
        peak = max(curve, key=lambda ratio: curve[ratio][1])
        gain = curve[0.8][0] - curve[8.0][0]
        lowest = min(curve[ratio][0] for ratio in RATIOS if ratio < 1)
        results += [
            {'quantity': 'width at the peak / examples', 'value': peak, 'seed': seed},
            {'quantity': 'error at 0.8 n - error at 8 n', 'value': gain, 'seed': seed},
            {
                'quantity': 'lowest error below n - error at 8 n',
                'value': lowest - curve[8.0][0],
                'seed': seed,
            },
            {
                'quantity': 'error at n / at 8 n',
                'value': curve[1.0][0] / curve[8.0][0],
                'seed': seed,
            },
        ]
    return results


def digits():
    """Rows centred, then of unit norm [N, 64], and classes [N]."""
    found = load_digits()
    # on rows that are positive throughout, half of the features would be dead
    centred = found.data - found.data.mean(0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True), found.target


def test_error(seed, examples, ratio, inputs, classes):
    """The part of clean test rows told wrong, and their mean squared error to one-hot targets."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(inputs))
    train, test = order[:examples], order[examples:]
    wrong = rng.random(examples) < NOISE
    labels = (classes[train] + wrong * rng.integers(1, 10, examples)) % 10
    width = round(ratio * examples)
    weights = rng.normal(size=(inputs.shape[1], width))
    features = np.maximum(inputs @ weights, 0) / np.sqrt(width)
    # lstsq gives the solution of minimum norm; so small a cut-off leaves n = width its peak
    solution = np.linalg.lstsq(features[train], np.eye(10)[labels], rcond=1e-15)[0]
    outputs = features[test] @ solution
    error = np.mean(outputs.argmax(1) != classes[test])
    return float(error), float(np.mean(np.sum((outputs - np.eye(10)[classes[test]]) ** 2, 1)))


def draw(results, figure):
    figure.set_size_inches(8.4, 3.4)
    left, right = figure.subplots(1, 2)
    curve = [row for row in results if row['quantity'] == 'curve']
    for axes, key in ((left, 'value'), (right, 'squared')):
        for seed in sorted({row['seed'] for row in curve}):
            of_seed = [row for row in curve if row['seed'] == seed]
            ratios = [row['ratio'] for row in of_seed]
            axes.plot(ratios, [row[key] for row in of_seed], color=plots.BLUE, alpha=0.6)
        axes.axvline(1, color=plots.GREY, linestyle=plots.DASHED, linewidth=1)
        plots.log_scale(axes, 'x')
        axes.set(xlabel='width / examples')
        axes.set_xticks([0.1, 0.3, 1, 3, 8], ['0.1', '0.3', '1', '3', '8'])
        axes.xaxis.set_tick_params(which='minor', labelbottom=False)
    left.set(title='test error', ylim=(0, None))
    plots.log_scale(right, 'y')
    right.set(title='squared error on test')
