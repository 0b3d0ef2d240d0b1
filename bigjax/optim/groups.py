"""Which parameters get which treatment: by kind, and by the pattern of a group."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from bigjax import trees
from bigjax.config import GroupConfig
from bigjax.errors import ConfigError
from bigjax.optim.stacked import num_stacked

KINDS = ('kernel', 'embedding', 'bias', 'scale')


def kind(name: str, p: Any, axes: PartitionSpec) -> str:
    """The kind of the parameter `p` (an array or abstract shape): one of KINDS.

    A kind in the last component of its path decides, then the axes of an embedding, then the rank
    of one layer: two or more make a kernel, fewer a bias.
    """
    last = name.rpartition('/')[2]
    for known in KINDS:
        if known in last:
            return known
    stacked = num_stacked(name, axes)
    if set(tuple(axes)[stacked : stacked + 1]) & {'vocab', 'position'}:
        return 'embedding'
    return 'kernel' if p.ndim - stacked >= 2 else 'bias'


def is_hidden_matrix(name: str, p: Any, axes: PartitionSpec) -> bool:
    """A kernel, convolutions included, that touches neither the model's inputs nor its outputs."""
    return (
        kind(name, p, axes) == 'kernel'
        and p.ndim - num_stacked(name, axes) >= 2
        and not set(axes) & {'input', 'output', 'vocab'}
    )


def fans(p: Any, axes: PartitionSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of fan-in and of fan-out of a matrix `p`, without those of a stack.

    A kernel is [fan-in..., fan-out], but for the projection to heads, [embed, heads, head_dim].
    """
    first, last = num_stacked('fans', axes), p.ndim - 1
    split = first + 1 if tuple(axes)[first : first + 1] == ('embed',) else last
    return tuple(range(first, split)), tuple(range(split, last + 1))


def trained(params: Any, groups: Sequence[GroupConfig], where: str) -> Any:
    """A tree like `params`, False where a leaf is frozen. Raises: ConfigError, if they all are."""
    found = jax.tree.map(lambda group: group.learning_rate > 0, by_leaf(params, groups, where))
    if not any(jax.tree.leaves(found)):
        raise ConfigError(f'{where}: every parameter is frozen; give one a learning_rate')
    return found


def by_leaf(params: Any, groups: Sequence[GroupConfig], where: str) -> Any:
    """A tree like `params` with the first group that matches each leaf. Raises: ConfigError."""
    if not groups:
        return jax.tree.map(lambda _: GroupConfig('.*'), params)
    labels = trees.labels_by_pattern(params, [group.pattern for group in groups], where)
    return jax.tree.map(lambda index: groups[index], labels)
