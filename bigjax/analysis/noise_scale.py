"""The gradient noise scale: about the batch size at which a larger one stops to pay.

McCandlish et al. 2018. With G the gradient of the loss and S the covariance of the gradients of
single examples, the simple noise scale is B_simple = tr S / |G|^2 (their equation 2.9).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Noise(NamedTuple):
    """tr S and |G|^2; estimates of |G|^2 may be negative where noise is large."""

    trace: Any
    square: Any

    @property
    def scale(self) -> Any:
        """B_simple, in examples."""
        return self.trace / self.square


def from_two_sizes(small: Any, large: Any, small_square: Any, large_square: Any) -> Noise:
    """Unbiased tr S and |G|^2 from mean squared norms of gradients over `small` and `large`
    numbers of examples (appendix A.1); their ratio is biased, so average each on its own."""
    trace = (small_square - large_square) / (1 / small - 1 / large)
    square = (large * large_square - small * small_square) / (large - small)
    return Noise(trace, square)


@partial(jax.jit, static_argnums=0)
def from_examples(loss: Callable[[Any, Any], jax.Array], params: Any, examples: Any) -> Noise:
    """Unbiased tr S and |G|^2 from the gradients of N examples: a tree of arrays [N, ...].

    loss: (params, one example) -> a scalar. Keeps N gradients in memory.
    """
    grads = jax.vmap(jax.grad(loss), (None, 0))(params, examples)
    count = len(jax.tree.leaves(examples)[0])
    mean = jax.tree.map(lambda grad: grad.mean(0), grads)
    apart = jax.tree.map(lambda grad, middle: grad - middle[None], grads, mean)
    trace = _square(apart) / (count - 1)
    return Noise(trace, _square(mean) - trace / count)


def _square(tree: Any) -> jax.Array:
    return sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)), jnp.zeros(()))
