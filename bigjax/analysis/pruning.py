"""Pruning by magnitude: masks over a tree of parameters (Han et al. 2015).

Iterative magnitude pruning (Frankle and Carbin 2019, section 1) is a loop over these:

    masks = everything(initial)
    for _ in range(rounds):
        trained = train(apply(initial, masks), held(optimizer, masks))
        masks = prune(trained, masks, {'hidden_.*kernel': 0.2, 'read_out/kernel': 0.1})

and `apply(initial, masks)` rewinds what is left to where it began.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigjax import trees
from bigjax.errors import ConfigError


def everything(params: Any) -> Any:
    """Masks that prune nothing: a tree like `params` of bools."""
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)


def prune(
    params: Any,
    masks: Any,
    rates: Mapping[str, float],
    scope: Literal['layer', 'global'] = 'layer',
) -> Any:
    """Masks without the smallest of what is left: `rate` of it, rounded to the nearest count.

    rates: by the first pattern that `re.search`es a parameter's path; those that none matches stay
        whole.
    scope: 'layer' takes that part of each parameter, 'global' of all that one pattern matches.

    Raises: ConfigError for a rate outside [0, 1), or a pattern that matches first nowhere.
    """
    for pattern, rate in rates.items():
        if not 0 <= rate < 1:
            raise ConfigError(f'rates[{pattern!r}]: expected 0 <= rate < 1, got {rate}')
    sizes = _by_name(params)
    kept = {name: np.array(mask) for name, mask in _by_name(masks).items()}
    for pattern, names in _matches(sizes, list(rates)).items():
        for group in [names] if scope == 'global' else [[name] for name in names]:
            found = [np.abs(np.asarray(sizes[name]))[kept[name]] for name in group]
            alive = _without_smallest(np.concatenate(found), rates[pattern])
            ends = np.cumsum([part.size for part in found])[:-1]
            for name, part in zip(group, np.split(alive, ends), strict=True):
                kept[name][kept[name]] = part
    return trees.map_with_name(lambda name, _: kept[name], masks)


def apply(params: Any, masks: Any) -> Any:
    """The parameters with 0 where they are pruned."""
    return jax.tree.map(lambda leaf, mask: jnp.where(mask, leaf, 0), params, masks)


def held(optimizer: optax.GradientTransformation, masks: Any) -> optax.GradientTransformation:
    """The optimizer, which sees no gradient where a weight is pruned and never moves it.

    The masks are part of its state, so that they are arrays of a compiled step, not constants.
    """

    def init(params: Any) -> tuple[Any, Any]:
        return optimizer.init(params), jax.tree.map(jnp.asarray, masks)

    def update(grads: Any, state: tuple[Any, Any], params: Any = None) -> tuple[Any, Any]:
        inner, kept = state
        updates, inner = optimizer.update(apply(grads, kept), inner, params)
        return apply(updates, kept), (inner, kept)

    return optax.GradientTransformation(init, update)


def density(masks: Any, pattern: str = '.*') -> float:
    """The part that is left of the parameters whose path matches. Raises: ConfigError for none."""
    chosen = _by_name(masks)
    chosen = {name: chosen[name] for name in _matches(chosen, [pattern])[pattern]}
    return sum(int(mask.sum()) for mask in chosen.values()) / trees.count(chosen)


def random_like(masks: Any, rng: np.random.Generator) -> Any:
    """Masks with as many left in each parameter, anywhere: the control of a ticket's structure."""
    return jax.tree.map(lambda mask: rng.permutation(mask.ravel()).reshape(mask.shape), masks)


def _by_name(tree: Any) -> dict[str, Any]:
    return dict(zip(trees.names(tree), jax.tree.leaves(tree), strict=True))


def _matches(named: Mapping[str, Any], patterns: list[str]) -> dict[str, list[str]]:
    """The names of which each pattern is the first to match. Raises: ConfigError for none."""
    found: dict[str, list[str]] = {pattern: [] for pattern in patterns}
    compiled: list[re.Pattern[str]] = [trees.compile_pattern(p, 'pruning') for p in patterns]
    for name in named:
        first = next((pattern for pattern in compiled if pattern.search(name)), None)
        if first is not None:
            found[first.pattern].append(name)
    for pattern, names in found.items():
        if not names:
            known = ', '.join(list(named)[:8])
            raise ConfigError(f'pruning: pattern {pattern!r} picks no parameter; names: {known}')
    return found


def _without_smallest(sizes: np.ndarray, rate: float) -> np.ndarray:
    """Which of `sizes` [n] to keep; of equal ones the first go first."""
    alive = np.ones(sizes.size, bool)
    alive[np.argsort(sizes, kind='stable')[: round(rate * sizes.size)]] = False
    return alive
