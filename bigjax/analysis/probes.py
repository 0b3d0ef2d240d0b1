"""Linear probes: how much of something can be read off a layer by a linear map (Alain and Bengio
2016). Features are activations [N, D], of any layer; they should be standardised."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigjax.errors import ConfigError, DataError


class Probe(NamedTuple):
    """features @ kernel + bias: of numbers [N, O], or logits of classes [N, C]."""

    kernel: jax.Array  # [D, O]
    bias: jax.Array  # [O]

    def __call__(self, features: jax.Array) -> jax.Array:
        return features @ self.kernel + self.bias[None]


def fit_ridge(features: jax.Array, targets: jax.Array, l2: float = 1.0) -> Probe:
    """Minimises the sum of squared errors + l2 |kernel|^2, in closed form (in float64, on host).

    targets: [N, O]. Raises: DataError, ConfigError.
    """
    x, y = _checked(features, targets, l2)
    if y.ndim != 2:
        raise DataError(f'targets of a ridge probe: expected [N, O], got {list(y.shape)}')
    x_mean, y_mean = x.mean(0), y.mean(0)
    centred = x - x_mean
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    small = s <= np.finfo(float).eps * max(x.shape) * s.max(initial=0)
    gain = np.where(small, 0, s / np.where(small, 1, s**2 + l2))
    kernel = vt.T @ (gain[:, None] * (u.T @ (y - y_mean)))
    return Probe(jnp.float32(kernel), jnp.float32(y_mean - x_mean @ kernel))


def fit_logistic(
    features: jax.Array,
    classes: jax.Array,
    l2: float = 1.0,
    *,
    num_classes: int | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 2000,
) -> Probe:
    """Minimises the sum of cross-entropies + l2 / 2 |kernel|^2 by L-BFGS.

    classes: ids [N]. tolerance: of the largest entry of the gradient of the mean.
    Raises: DataError; ConfigError where `max_steps` do not reach the tolerance.
    """
    x, y = _checked(features, classes, l2)
    if y.ndim != 1 or y.dtype.kind not in 'iu' or y.min() < 0:
        raise DataError(f'classes of a probe: expected ids [N] from 0, got {y.dtype} {y.shape}')
    count = num_classes or int(y.max()) + 1
    if y.max() >= count:
        raise DataError(f'classes of a probe: expected ids below {count}, got {y.max()}')
    kernel, bias, slope = _lbfgs(
        jnp.float32(x), jnp.int32(y), jnp.float32(l2), count, tolerance, max_steps
    )
    if not slope <= tolerance:
        raise ConfigError(
            f'logistic probe: a gradient of {float(slope):.3g} is left after {max_steps} steps, '
            f'expected {tolerance:.3g}; standardise the features, or raise l2 or max_steps'
        )
    return Probe(kernel, bias)


def accuracy(probe: Probe, features: jax.Array, classes: jax.Array) -> float:
    """The part of the rows whose class has the largest logit."""
    return float(jnp.mean(probe(features).argmax(-1) == classes))


def _lbfgs(
    x: jax.Array, y: jax.Array, l2: jax.Array, count: int, tolerance: float, max_steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Kernel, bias, and the largest entry of the gradient there."""

    def loss(probe: Probe) -> jax.Array:
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(probe(x), y)
        return losses.mean() + l2 / (2 * len(y)) * jnp.sum(probe.kernel**2)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def steepest(grads: Probe) -> jax.Array:
        return jnp.maximum(jnp.abs(grads.kernel).max(), jnp.abs(grads.bias).max())

    def goes_on(carry: tuple) -> jax.Array:
        _, _, step, slope = carry
        return (step < max_steps) & (slope > tolerance)

    def body(carry: tuple) -> tuple:
        probe, state, step, _ = carry
        value, grads = value_and_grad(probe, state=state)
        updates, state = optimizer.update(
            grads, state, probe, value=value, grad=grads, value_fn=loss
        )
        probe = optax.apply_updates(probe, updates)
        return probe, state, step + 1, steepest(optax.tree.get(state, 'grad'))

    @jax.jit
    def run() -> tuple[Probe, jax.Array]:
        probe = Probe(jnp.zeros((x.shape[1], count)), jnp.zeros(count))
        carry = probe, optimizer.init(probe), 0, jnp.float32(jnp.inf)
        probe, _, _, slope = jax.lax.while_loop(goes_on, body, carry)
        return probe, slope

    probe, slope = run()
    return probe.kernel, probe.bias, slope


def _checked(features: jax.Array, targets: jax.Array, l2: float) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(features, np.float64), np.asarray(targets)
    if x.ndim != 2 or len(x) != len(y) or not len(x):
        raise DataError(
            f'probe: expected features [N, D] and as many targets, got {list(x.shape)} and '
            f'{list(y.shape)}'
        )
    if not np.isfinite(x).all():
        raise DataError('probe: expected finite features, got NaN or infinity')
    if not l2 >= 0:
        raise ConfigError(f'l2 of a probe: expected >= 0, got {l2}')
    return x, y
