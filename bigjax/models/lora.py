"""Low-rank adapters: W + alpha / r * A B for chosen kernels, with W frozen (Hu et al. 2022, 4.1).

An adapted model is a model as any other, whose params are those of the base and, under 'lora', a
pair of matrices for each chosen kernel: {'block_0.attention.query.kernel': {'a': [..., D, r],
'b': [..., r, F]}}, where D and F are the kernel's fan-in and fan-out axes flattened, and leading
axes are a stack, of layers or experts. The pairs are merged before the base reads its parameters,
so that casts, gathers, remat and scan are its own. (qwix 0.1.8 adapts a kernel where it enters a
product; ours are flattened to matrices before, and it passes them over without a word.)
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bigjax import trees
from bigjax.config import GroupConfig, LoraConfig, OptimizerConfig
from bigjax.errors import ConfigError
from bigjax.models.core import Model, Variables
from bigjax.optim.stacked import num_stacked

KEY = 'lora'


def adapt(model: Model, config: LoraConfig) -> Model:
    """The model with adapters; as the base at first, since b is zero.

    Raises: ConfigError if no kernel matches `config.targets`, or a match is no kernel.
    """
    shapes, axes = model.abstract()['params'], model.axes['params']
    targets = trees.compile_pattern(config.targets, 'config.lora.targets')
    frozen = trees.compile_pattern(_frozen(config), 'config.lora.train')
    kernels = {
        name: _Kernel.of(name, leaf.shape, names)
        for name, leaf, names in zip(
            trees.names(shapes), jax.tree.leaves(shapes), jax.tree.leaves(axes), strict=True
        )
        if targets.search(name)
    }
    if not kernels:
        raise ConfigError(
            f'config.lora.targets: expected a pattern of kernels, got {config.targets!r}, which '
            'matches none; names: ' + ', '.join(trees.names(shapes)[:8])
        )

    def init(rng: jax.Array) -> Variables:
        variables = model.init(rng)
        rngs = jax.random.split(jax.random.fold_in(rng, 1), len(kernels))
        pairs = {
            _key(name): kernel.init(rng, config.rank)
            for rng, (name, kernel) in zip(rngs, kernels.items(), strict=True)
        }
        return {**variables, 'params': {**variables['params'], KEY: pairs}}

    def merged(apply: Callable[..., Any]) -> Callable[..., Any]:
        def of_merged(variables: Variables, *args: Any, **kwargs: Any) -> Any:
            params = trees.map_with_name(
                lambda name, leaf: jax.lax.stop_gradient(leaf) if frozen.search(name) else leaf,
                variables['params'],
            )
            return apply({**variables, 'params': merge(params, config)}, *args, **kwargs)

        return of_merged

    pairs = {_key(name): kernel.axes for name, kernel in kernels.items()}
    axes = {**model.axes, 'params': {**axes, KEY: pairs}}
    parts = None if model.parts is None else merged(model.parts)
    return dataclasses.replace(
        model,
        init=init,
        apply=merged(model.apply),
        parts=parts,
        axes=axes,
        stddevs=None,
    )


def merge(params: Mapping[str, Any], config: LoraConfig) -> dict[str, Any]:
    """The params of the base, with the adapters folded into their kernels."""
    pairs = params[KEY]

    def merged(name: str, kernel: jax.Array) -> jax.Array:
        if _key(name) not in pairs:
            return kernel
        pair = pairs[_key(name)]
        return kernel + config.scale * (pair['a'] @ pair['b']).reshape(kernel.shape)

    return trees.map_with_name(merged, {name: params[name] for name in params if name != KEY})


def freeze(optimizer: OptimizerConfig, config: LoraConfig) -> OptimizerConfig:
    """The optimizer of what is neither frozen by its own groups nor a base's kept as it is."""
    groups = optimizer.groups or (GroupConfig('.*'),)
    return dataclasses.replace(optimizer, groups=(GroupConfig(_frozen(config), 0.0), *groups))


def _frozen(config: LoraConfig) -> str:
    """The pattern of all but the adapters and `config.train`."""
    return f'^(?!{KEY}/|.*(?:{config.train}))'


def _key(name: str) -> str:
    return name.replace('/', '.')


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """A kernel as a matrix, or as a stack of them: fan-in and fan-out axes."""

    stack: tuple[int, ...]
    fan_in: int
    fan_out: int
    axes: dict[str, PartitionSpec]

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...], names: PartitionSpec) -> '_Kernel':
        """The last axis is the fan-out, with the one before it if that is of heads. Several axes as
        one are laid out by the first of them."""
        stacked = num_stacked(name, names)
        split = len(shape) - (2 if names[-1:] == ('head_dim',) else 1)
        if split <= stacked:
            raise ConfigError(
                f'config.lora.targets: expected kernels, got {name} of shape {shape}; narrow the '
                'pattern'
            )
        stack = names[:stacked]
        axes = {
            'a': PartitionSpec(*stack, names[stacked], 'rank'),
            'b': PartitionSpec(*stack, 'rank', names[split]),
        }
        fan_in, fan_out = math.prod(shape[stacked:split]), math.prod(shape[split:])
        return cls(shape[:stacked], fan_in, fan_out, axes)

    def init(self, rng: jax.Array, rank: int) -> dict[str, jax.Array]:
        """a of variance 1 / fan-in, b zero."""
        a = jax.random.normal(rng, (*self.stack, self.fan_in, rank)) / math.sqrt(self.fan_in)
        return {'a': a, 'b': jnp.zeros((*self.stack, rank, self.fan_out))}
