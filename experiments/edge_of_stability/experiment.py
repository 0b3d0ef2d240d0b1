"""Cohen et al. 2021: under gradient descent the sharpness rises to 2 / learning rate, and stays."""

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.analysis.sharpness import top_eigenpairs
from bigjax.study import in_memory, plots
from bigjax.study.in_memory import FASHION_MNIST, Rows

EXAMPLES, WIDTHS = 1000, (100, 100)
STEPS = {0.05: 3000, 0.1: 1500}
"""By learning rate, the highest of which is stable at a sharpness of 2 / rate."""
SETTLED = 0.5
"""The part of training, at its end, over which the sharpness is averaged."""


def measure(study, smoke, data):
    rows, _ = in_memory.read_images(data or FASHION_MNIST, smoke)
    rows = prepared(rows.first(100 if smoke else EXAMPLES))
    results = []
    for rate, steps in STEPS.items():
        steps = 40 if smoke else steps
        curve = descend(rows, (10,) if smoke else WIDTHS, rate, steps, steps // 60 or 10)
        results += [{'quantity': 'curve', 'value': s, 'rate': rate, **rest} for s, rest in curve]
        late = [s for s, rest in curve if rest['step'] > (1 - SETTLED) * steps]
        losses = [rest['loss'] for _, rest in curve]
        results += [
            {'quantity': f'sharpness at {rate:g}', 'value': float(np.mean(late))},
            {'quantity': f'first sharpness at {rate:g}', 'value': curve[0][0]},
            {
                'quantity': f'last loss / loss half way at {rate:g}',
                'value': losses[-1] / losses[len(losses) // 2],
            },
        ]
    return results


def prepared(rows):
    """Pixels less their means, targets one-hot."""
    inputs = rows.inputs - rows.inputs.mean(0)
    return Rows(jnp.asarray(inputs), jax.nn.one_hot(rows.targets, 10))


def descend(rows, widths, rate, steps, every):
    """Sharpness and loss along full-batch gradient descent, `every` so many steps."""
    model = in_memory.perceptron(rows, widths, 'tanh')

    def loss(params, rows):
        outputs = model.apply({'params': params}, rows.inputs, train=True)[0]
        return jnp.sum((outputs - rows.targets) ** 2) / (2 * len(rows.targets))

    @jax.jit
    def advance(params):
        def step(params, _):
            grads = jax.grad(loss)(params, rows)
            return jax.tree.map(lambda leaf, grad: leaf - rate * grad, params, grads), None

        return jax.lax.scan(step, params, length=every)[0]

    value = jax.jit(loss)
    params, start, curve = model.init(jax.random.key(0))['params'], None, []
    for step in range(0, steps + 1, every):
        found = top_eigenpairs(loss, params, rows, start=start, tolerance=2e-3)
        rest = {'step': step, 'loss': float(value(params, rows))}
        curve.append((float(found.values[0]), rest))
        # Not the eigenvector alone: what is orthogonal to it would never be found.
        noise = jax.tree.map(lambda leaf: 0.1 * jnp.ones_like(leaf) / leaf.size**0.5, params)
        start = jax.tree.map(lambda leaf, extra: leaf[0] + extra, found.vectors, noise)
        params = advance(params)
    return curve


def draw(results, figure):
    figure.set_size_inches(8.4, 3.4)
    left, right = figure.subplots(1, 2)
    for rate, colour in zip(STEPS, (plots.BLUE, plots.ORANGE), strict=True):
        curve = [r for r in results if r['quantity'] == 'curve' and r['rate'] == rate]
        steps = [row['step'] for row in curve]
        left.plot(steps, [row['value'] for row in curve], color=colour, label=f'rate {rate:g}')
        left.axhline(2 / rate, color=colour, linestyle=plots.DASHED, linewidth=1)
        right.plot(steps, [row['loss'] for row in curve], color=colour)
    left.set(title='sharpness, and 2 / rate', xlabel='steps', ylim=(0, None))
    left.legend()
    plots.log_scale(right, 'y')
    right.set(title='training loss', xlabel='steps')
