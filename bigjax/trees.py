"""Trees of parameters by path name: `block_0/attention/query/kernel`."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from bigjax.errors import ConfigError


def path_name(path: Sequence[Any]) -> str:
    """A key path of JAX's as a slash-separated name."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def names(tree: Any) -> list[str]:
    """The path name of every leaf, in the tree's order."""
    return [path_name(path) for path, _ in jax.tree.leaves_with_path(tree)]


def map_with_name(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function is given the path name first."""
    return jax.tree.map_with_path(
        lambda path, *leaves: function(path_name(path), *leaves), tree, *rest
    )


def labels_by_pattern(tree: Any, patterns: Sequence[str], where: str) -> Any:
    """For each leaf the index of the first pattern that `re.search`es its name.

    Raises: ConfigError if a leaf matches none, or a pattern is the first match of no leaf.
    """
    compiled = [compile_pattern(pattern, where) for pattern in patterns]
    used: set[int] = set()

    def label(name: str, _: Any) -> int:
        for index, pattern in enumerate(compiled):
            if pattern.search(name):
                used.add(index)
                return index
        raise ConfigError(
            f'{where}: no pattern matches parameter {name!r}; patterns must cover all parameters '
            "(end with '.*')"
        )

    labels = map_with_name(label, tree)
    idle = [pattern for index, pattern in enumerate(patterns) if index not in used]
    if idle:
        raise ConfigError(
            f'{where}: pattern {idle[0]!r} picks no parameter; names: ' + ', '.join(names(tree)[:8])
        )
    return labels


def compile_pattern(pattern: str, where: str) -> re.Pattern[str]:
    """A regular expression from a config. Raises: ConfigError."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f'bad value for {where}: {pattern!r} is no regular expression ({error})'
        ) from None


def count(tree: Any) -> int:
    """The number of scalars in a tree of arrays or abstract shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: Any) -> int:
    """The bytes of a tree of arrays or abstract shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
