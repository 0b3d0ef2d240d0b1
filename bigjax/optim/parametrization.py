"""How initial values and learning rates go with the size of a model: muP and CompleteP.

A model is measured against a base model, where everything is as in the standard parametrization.
Each tensor has a label, of its logical axes, and the ratios of its fans to those at the base; TABLE
says what follows. With read-outs that multiply by 1 / m in the forward pass it is table 8 of Yang &
Hu et al. 2021 (Tensor Programs V) for Adam and SGD. Methods whose step goes by the sign or scale of
each entry follow Adam (Yang & Littwin 2023, Tensor Programs IVb, section 2). Muon's step has the
spectral norm that the theory asks for (Yang, Simon & Bernstein 2023, condition 1), and all else
follows Adam. What CompleteP adds is table 1 of Dey et al. 2025.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import PartitionSpec

from bigjax import trees
from bigjax.config import OptimizerConfig, ParametrizationConfig
from bigjax.errors import ConfigError
from bigjax.optim import groups

WHERE = 'config.parametrization'
Label = Literal['input', 'hidden', 'output', 'vector']
Family = Literal['adam', 'sgd', 'muon']

BLOCK = re.compile(r'block_\d+/')
"""In the names of what stands inside a residual block."""


class Powers(NamedTuple):
    """Of the ratios of the fans to the base's."""

    fan_in: int = 0
    fan_out: int = 0

    def of(self, tensor: 'Tensor') -> float:
        return tensor.fan_in**self.fan_in * tensor.fan_out**self.fan_out


class Row(NamedTuple):
    """What the width does to the initial variance, and to the rates of Adam and of SGD."""

    variance: Powers = Powers()
    adam: Powers = Powers()
    sgd: Powers = Powers()


TABLE: dict[Label, Row] = {
    'input': Row(sgd=Powers(fan_out=1)),
    'hidden': Row(Powers(fan_in=-1), adam=Powers(fan_in=-1), sgd=Powers(fan_in=-1, fan_out=1)),
    'output': Row(sgd=Powers(fan_in=1)),
    'vector': Row(sgd=Powers(fan_out=1)),
}

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(('sgd', 'momentum', 'nesterov'), 'sgd'),
    **dict.fromkeys(('adam', 'adamw', 'amsgrad', 'adamax', 'nadam', 'nadamw', 'adabelief'), 'adam'),
    **dict.fromkeys(('adopt', 'adan', 'ademamix', 'lion', 'signum'), 'adam'),
    'muon': 'muon',
}  # type: ignore[assignment]
"""The optimizers for which the theory says how."""
COUPLED = ('adam', 'amsgrad', 'adamax', 'nadam')
"""Those that adapt to the gradient of the penalty, too, for which it says nothing."""


@dataclass(frozen=True)
class Tensor:
    """fan_in, fan_out: ratios to the base's; of a vector, fan_out is its length's.

    in_block: inside a residual block.
    """

    label: Label
    fan_in: float
    fan_out: float
    in_block: bool


@dataclass(frozen=True)
class Scaling:
    """A model against its base.

    tensors: a tree like the parameters with a `Tensor` for each; base: the abstract parameters of
        the base. width, depth: what the read-out reads, and residual blocks, as ratios.
    """

    config: ParametrizationConfig
    tensors: Any
    base: Any
    width: float
    depth: float

    @property
    def is_complete(self) -> bool:
        return self.config.name == 'completep'

    def rates(self, family: Family) -> Any:
        """A tree of factors of the learning rate; Muon sees to its own matrices."""

        def rate(tensor: Tensor) -> float:
            in_depth = self.depth ** (self.config.depth_exponent - 1) if tensor.in_block else 1.0
            if family == 'muon':
                return in_depth if tensor.label == 'hidden' else TABLE[tensor.label].adam.of(tensor)
            return in_depth * getattr(TABLE[tensor.label], family).of(tensor)

        return jax.tree.map(rate, self.tensors)

    def decays(self, family: Family) -> Any:
        """A tree of factors of the weight decay.

        What it takes off in a step is the rate times the decay. CompleteP holds that constant in
        width, and so do we under SGD, where the paper is silent; muP under Adam leaves the decay.
        """

        def decay(tensor: Tensor) -> float:
            if family == 'sgd':
                return 1 / TABLE[tensor.label].sgd.of(tensor)
            if family == 'adam' and self.is_complete:
                return 1 / TABLE[tensor.label].adam.of(tensor)
            return 1.0

        return jax.tree.map(decay, self.tensors)

    def epsilons(self) -> Any:
        """A tree of factors of Adam's epsilon: what gradients do with size, under CompleteP."""

        def epsilon(tensor: Tensor) -> float:
            in_depth = self.depth**-self.config.depth_exponent if tensor.in_block else 1.0
            return in_depth / self.width if self.is_complete else 1.0

        return jax.tree.map(epsilon, self.tensors)


def label(name: str, p: Any, axes: PartitionSpec) -> Label:
    """Raises: ConfigError for a router's kernel, whose outputs are few but inside the model."""
    if 'router' in tuple(axes):
        raise ConfigError(
            f'{WHERE}.name: expected a model without a mixture of experts, for which the theory '
            f"here has no rule, got {name}; set 'sp'"
        )
    kind = groups.kind(name, p, axes)
    if kind in ('bias', 'scale'):
        return 'vector'
    if tuple(axes)[-1] in ('output', 'vocab'):
        return 'output'
    return 'input' if kind == 'embedding' or 'input' in tuple(axes) else 'hidden'


def measure(config: ParametrizationConfig, params: Any, base: Any, axes: Any, depth: float) -> Any:
    """The Scaling of a model against its base, both as abstract parameters.

    Raises: ConfigError if they differ in more than their sizes.
    """
    if trees.names(params) != trees.names(base) or any(
        p.ndim != q.ndim for p, q in zip(*map(jax.tree.leaves, (params, base)), strict=True)
    ):
        found = set(trees.names(params)) ^ set(trees.names(base))
        raise ConfigError(
            f'{WHERE}.base: expected the same parameters as in config.model but for their sizes, '
            f'got others ({", ".join(sorted(found)[:3])}); depth goes into base_depth'
        )

    def tensor(name: str, p: Any, q: Any, names: PartitionSpec) -> Tensor:
        kind = label(name, p, names)
        (ours, out), (theirs, base_out) = (_fans(x, names, kind) for x in (p, q))
        in_block = 'layers' in tuple(names) or BLOCK.search(name) is not None
        return Tensor(kind, ours / theirs, out / base_out, in_block)

    tensors = trees.map_with_name(tensor, params, base, axes)
    every = jax.tree.leaves(tensors)
    widths = {tensor.fan_in for tensor in every if tensor.label == 'output'}
    widths = widths or {tensor.fan_out for tensor in every if tensor.label == 'input'}
    if len(widths) != 1:
        raise ConfigError(f'{WHERE}.name: expected one read-out, got {len(widths)} of them')
    return Scaling(config, tensors, base, widths.pop(), depth)


def head_ratio(params: Any, base: Any, axes: Any) -> float:
    """The size of attention's heads over that at the base; 1 where there is no attention."""
    ratios = {
        p.shape[tuple(names).index('head_dim')] / q.shape[tuple(names).index('head_dim')]
        for p, q, names in zip(*map(jax.tree.leaves, (params, base, axes)), strict=True)
        if 'head_dim' in tuple(names)
    }
    return ratios.pop() if ratios else 1.0


def init_factors(scaling: Scaling, stddevs: Any, base_stddevs: Any) -> Any:
    """A tree of factors of what the model draws at first, so that its variance is as TABLE has it.

    stddevs, base_stddevs: standard deviations of what the model and its base draw.
    Raises: ConfigError where a model does not tell them.
    """

    def factor(name: str, tensor: Tensor, own: float, base: float) -> float:
        if math.isnan(own):
            raise ConfigError(
                f'{WHERE}.name: expected parameters that tell their initial variance, got {name}; '
                'take its initializer from bigjax.nn.initializers'
            )
        return base * TABLE[tensor.label].variance.of(tensor) ** 0.5 / own if own else 1.0

    return trees.map_with_name(factor, scaling.tensors, stddevs, base_stddevs)


def family(config: OptimizerConfig, scaling: Scaling) -> Family:
    """Raises: ConfigError where the theory says nothing of the optimizer."""
    name = scaling.config.name
    if config.name not in FAMILIES:
        raise ConfigError(
            f'config.optimizer.name: expected one of {", ".join(sorted(FAMILIES))} under {name}, '
            f"got {config.name!r}, for which the theory has no rates; set {WHERE}.name='sp'"
        )
    found = FAMILIES[config.name]
    if found == 'sgd' and scaling.is_complete:
        raise ConfigError(
            f"{WHERE}.name: expected 'mup' under {config.name}: 'completep' has rates for Adam's "
            'family and muon'
        )
    if config.name in COUPLED and config.weight_decay:
        raise ConfigError(
            f'config.optimizer.weight_decay: expected 0 of {config.name} under {name}, whose '
            f'penalty would scale otherwise than the loss, got {config.weight_decay}; use adamw'
        )
    return found


def _fans(p: Any, axes: PartitionSpec, kind: Label) -> tuple[int, int]:
    if kind == 'vector':
        return 1, math.prod(p.shape[groups.num_stacked('', axes) :])
    into, out = groups.fans(p, axes)
    return math.prod(p.shape[axis] for axis in into), math.prod(p.shape[axis] for axis in out)
