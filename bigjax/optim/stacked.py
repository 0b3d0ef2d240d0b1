"""Layers stacked along a leading axis, as `nn.scan` makes them, are tensors of their own; and so
are experts, of a layer or of each of a stack.

Optimizers with statistics per tensor (a norm, a row mean) would take a stack for one.
"""

import re
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec

from bigjax import trees
from bigjax.errors import ConfigError

STACKED = ('layers', 'experts')
BLOCK = re.compile(r'(?:^|[/.])block_(\d+)[/.]')
EMBEDDING = re.compile('embed|positions|token')
"""Names of what stands below the first block of a Transformer."""


def num_stacked(name: str, axes: PartitionSpec) -> int:
    """How many leading axes of a parameter are STACKED. Raises: ValueError if they do not lead."""
    found = [axis for axis in axes if axis in STACKED]
    if list(axes)[: len(found)] != sorted(found, key=STACKED.index):
        raise ValueError(f"{name}: 'layers', then 'experts', must come first, got {tuple(axes)}")
    return len(found)


def layer_factors(params: Any, axes: Any, decay: float, where: str) -> Any:
    """Factors of learning rates that fall with the distance from the head (Clark et al. 2020, A).

    decay^(L - i) for block i of L, from 0; decay^(L + 1) for what embeds tokens or patches; 1 for
    all else. A stack of blocks has an array of them, [L, 1, ...].

    Raises: ConfigError if decay < 1 and the model has no blocks.
    """
    if decay == 1:
        return jax.tree.map(lambda _: 1.0, params)
    numbers = [int(found[1]) for name in trees.names(params) if (found := BLOCK.search(name))]
    stacks = trees.map_with_name(
        lambda _, p, names: p.shape[0] if 'layers' in tuple(names) else 0, params, axes
    )
    count = max([*jax.tree.leaves(stacks), *(number + 1 for number in numbers)])
    if not count:
        raise ConfigError(f'{where}: expected 1 for a model without blocks, got {decay}')

    def factor(name: str, p: Any, stack: int) -> Any:
        if stack:
            return decay ** np.arange(stack, 0, -1.0).reshape(-1, *(1,) * (p.ndim - 1))
        if found := BLOCK.search(name):
            return decay ** (count - int(found[1]))
        return decay ** (count + 1) if EMBEDDING.match(name) else 1.0

    return trees.map_with_name(factor, params, stacks)


def per_layer(
    transform: optax.GradientTransformation, stacked: Any
) -> optax.GradientTransformation:
    """`transform` applied to each tensor by itself, and to each one of a stack by itself.

    stacked: a tree like the parameters, each leaf's number of stacked axes. The state is such a
    tree too, with the transform's own state of each leaf.
    """

    def init(params: Any) -> Any:
        return jax.tree.map(lambda depth, p: _over(depth, transform.init)(p), stacked, params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def both(depth: int, *leaf: Any) -> Any:
            return _over(depth, transform.update)(*leaf)

        pairs = jax.tree.map(both, stacked, updates, state, params)
        return (
            jax.tree.map(lambda _, pair: pair[0], stacked, pairs),
            jax.tree.map(lambda _, pair: pair[1], stacked, pairs),
        )

    return optax.GradientTransformation(init, update)


def _over(depth: int, function: Any) -> Any:
    """`function` mapped over that many leading axes."""
    return _over(depth - 1, jax.vmap(function)) if depth else function
