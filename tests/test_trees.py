import jax
import jax.numpy as jnp
import pytest

from bigjax import trees
from bigjax.errors import ConfigError

TREE = {'block_0': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}, 'head': [jnp.ones(())]}


def test_names_and_counts():
    assert trees.names(TREE) == ['block_0/bias', 'block_0/kernel', 'head/0']
    assert trees.count(TREE) == 10
    assert trees.num_bytes(jax.eval_shape(lambda: TREE)) == 40


def test_the_first_pattern_wins():
    labels = trees.labels_by_pattern(TREE, ('kernel', 'block_0', '.*'), 'here')
    assert labels == {'block_0': {'kernel': 0, 'bias': 1}, 'head': [2]}


def test_patterns_must_cover_and_pick():
    with pytest.raises(ConfigError, match="here: no pattern matches parameter 'head/0'"):
        trees.labels_by_pattern(TREE, ('block',), 'here')
    with pytest.raises(ConfigError, match=r"here: '\(' is no regular expression"):
        trees.labels_by_pattern(TREE, ('(',), 'here')
    with pytest.raises(ConfigError, match="pattern 'krenel' picks no parameter; names: block_0"):
        trees.labels_by_pattern(TREE, ('krenel', '.*'), 'here')
