"""How sharply a loss curves: the top eigenvalues of its Hessian, which is never written down.

Pearlmutter 1994 (products with the Hessian); Golub and Van Loan 2013, section 10.1 (Lanczos).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from bigjax.errors import ConfigError

Loss = Callable[..., jax.Array]
"""(params, *data) -> a scalar. Compiled once for each function: pass the same one again."""


BLOCK = 32
"""Rows for which the basis first has room; it doubles as they fill."""


class Eigenpairs(NamedTuple):
    """Eigenvalues [k], the largest first; of each an eigenvector, a tree like the parameters of
    unit norm with a leading axis k; and a bound [k] on how far the eigenvalue may be off."""

    values: np.ndarray
    vectors: Any
    errors: np.ndarray


@partial(jax.jit, static_argnums=0)
def hessian_vector_product(loss: Loss, params: Any, vector: Any, *data: Any) -> Any:
    """H v for the Hessian H of `loss` at `params`: a tree like `vector`, like `params`."""
    return jax.jvp(jax.grad(lambda at: loss(at, *data)), (params,), (vector,))[1]


def top_eigenpairs(
    loss: Loss,
    params: Any,
    *data: Any,
    count: int = 1,
    tolerance: float = 1e-3,
    max_steps: int = 200,
    start: Any = None,
) -> Eigenpairs:
    """The `count` algebraically largest eigenvalues of the Hessian of `loss(params, *data)`.

    tolerance: Lanczos goes on until each is known to this part of the largest in size.
    start: a tree like `params` to begin from, such as the eigenvector of a step before; by default
        it is drawn from a normal distribution, always the same. What it is orthogonal to is not
        found; nor is an eigenvalue found more than once.

    Keeps a vector like `params` in memory for each step taken.

    Raises: ConfigError when `max_steps` are not enough, or the Hessian is not finite.
    """
    flat, unravel = ravel_pytree(params)
    if not 0 < count <= flat.size:
        raise ConfigError(f'count: expected 1 to {flat.size} eigenvalues, got {count}')
    first = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)
    first = first if start is None else ravel_pytree(start)[0]
    steps = min(max_steps, flat.size)
    basis = jnp.zeros((min(steps, BLOCK), flat.size), flat.dtype)
    diagonal: list[float] = []
    beside: list[float] = []
    vector = first / jnp.linalg.norm(first)
    for step in range(steps):
        if step == len(basis):
            basis = jnp.concatenate([basis, jnp.zeros_like(basis)])
        product = hessian_vector_product(loss, params, unravel(vector), *data)
        basis, alpha, rest, beta = _orthogonal(basis, step, vector, ravel_pytree(product)[0])
        diagonal.append(float(alpha))
        beside.append(float(beta))
        if not np.isfinite(diagonal[-1] + beside[-1]):
            raise ConfigError('the Hessian is not finite here; check the parameters and the data')
        values, ritz = _tridiagonal(diagonal, beside[:-1])
        errors = np.abs(beside[-1] * ritz[-1])
        slack = tolerance * np.abs(values).max()
        spent = beside[-1] <= jnp.finfo(flat.dtype).eps * np.abs(values).max()
        if len(values) >= count and (spent or (errors[:count] <= slack).all()):
            vectors = jnp.asarray(ritz[:, :count].T, flat.dtype) @ basis[: step + 1]
            return Eigenpairs(values[:count], jax.vmap(unravel)(vectors), errors[:count])
        if spent:
            raise ConfigError(
                f'count: expected at most {len(values)}, the different eigenvalues that a single '
                f'start reaches here, got {count}'
            )
        vector = rest / beta
    raise ConfigError(
        f'max_steps={max_steps} of Lanczos leave an eigenvalue uncertain by '
        f'{errors[:count].max():.3g}, more than {slack:.3g}; raise max_steps or tolerance'
    )


def sharpness(loss: Loss, params: Any, *data: Any, **options: Any) -> float:
    """The largest eigenvalue of the Hessian (Cohen et al. 2021); options as `top_eigenpairs`."""
    return float(top_eigenpairs(loss, params, *data, **options).values[0])


@partial(jax.jit, donate_argnums=0)
def _orthogonal(
    basis: jax.Array, step: int, vector: jax.Array, product: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The basis with v in row `step` (those below are 0), <v, H v>, what of H v lies outside of it,
    and the norm of that.

    Twice, which is enough to be orthogonal to rounding (Parlett 1998, section 6.9).
    """
    basis, alpha, rest = basis.at[step].set(vector), jnp.vdot(vector, product), product
    for _ in range(2):
        rest -= (basis @ rest) @ basis
    return basis, alpha, rest, jnp.linalg.norm(rest)


def _tridiagonal(diagonal: list[float], beside: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, the largest first, and eigenvectors in columns, in float64."""
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    values, vectors = np.linalg.eigh(matrix)
    return values[::-1], vectors[:, ::-1]
