"""The contract of a model: plain functions over plain trees.

A model named `mlp` is the module `bigjax.models.mlp`; any other name is a module of the user's own.
Such a module defines `Config`, a frozen dataclass, and

    build(config, inputs, outputs, dtype) -> Model

where `inputs` is a tree of `jax.ShapeDtypeStruct` with a leading batch axis, `outputs` the width of
the read-out that the task asks for, and `dtype` the compute dtype. Ours are Flax Linen modules
turned into functions by `from_linen`; a pair of plain functions, or an NNX module split into its
parts, is as good, if `apply` takes its variables through `sharding.rules.in_use` first, as our
layers do. docs/extending.md shows all three.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from flax.core.scope import DenyList

from bigjax.errors import ConfigError
from bigjax.nn import params
from bigjax.optim.parametrization import Scaling

Variables = Mapping[str, Any]
"""Collections by name: 'params', and what else the model keeps, such as 'batch_stats'."""
PASSING = ('losses', 'diagnostics')
"""Collections that training reads from `apply`, and no state keeps."""


@dataclass(frozen=True, eq=False)  # compared, and hashed for jit, by identity
class Model:
    """A functional model.

    init: key -> variables.
    apply: (variables, inputs, train, rngs) -> (outputs, the collections that changed). In training
        there may be two of which no variable comes: 'losses', any tree of arrays [..., B] to add to
        the losses of the rows, and 'diagnostics', sums over the batch to log (`nn.experts`).
    parts: as `apply`, but its outputs are hidden states [B, T, D] and the read-out, a function from
        some of them, [b, t, D], to logits, with its parameters (`jax.tree_util.Partial`); None for
        models that are not made of these.
    axes: a tree like variables with a PartitionSpec of logical axis names for each leaf.
    empty_cache: (rows, places) -> a collection 'cache' with which `apply` reads tokens bit by bit;
        None for models that cannot.
    context: the most positions of tokens that it tells apart; None for any number.
    stddevs: a tree like 'params' with the standard deviation of each leaf's initial value; NaN
        where it does not tell, None if none does.
    scaling: how large it is against its base model; None in the standard parametrization.
    sequence: the positions of a row, which the mesh axis `context` can split; None if it cannot.
    """

    init: Callable[[jax.Array], Variables]
    apply: Callable[..., tuple[Any, Variables]]
    axes: Any
    empty_cache: Callable[[int, int], Any] | None = None
    context: int | None = None
    sequence: int | None = None
    parts: Callable[..., tuple[Any, Variables]] | None = None
    stddevs: Any = None
    scaling: Scaling | None = None

    def abstract(self) -> Any:
        """Shapes and dtypes of the variables; nothing is materialised."""
        return jax.eval_shape(self.init, jax.random.key(0))


def require_rows(model: str, inputs: Any, rank: int, expected: str) -> None:
    """Raise ConfigError unless `inputs` is one array whose rows have that rank."""
    if isinstance(inputs, jax.ShapeDtypeStruct) and len(inputs.shape) == rank + 1:
        return
    shapes = jax.tree.map(lambda array: array.shape[1:], inputs)
    raise ConfigError(
        f'config.model.name: {model} expects {expected}, got rows of shape {shapes};'
        ' choose another model or other data'
    )


def from_linen(module: nn.Module, inputs: Any) -> Model:
    """A Linen module whose `__call__` takes (inputs, train) as a Model.

    Collections other than 'params' are mutable in training and constant in evaluation, but for
    'cache', which generation hands from call to call. Stochastic layers draw from the stream
    'dropout'.
    """

    def boxed(rng: jax.Array) -> Variables:
        example = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), inputs)
        rngs, kept = {'params': rng, 'dropout': rng}, DenyList(('intermediates', *PASSING))
        return module.init(rngs, example, train=False, mutable=kept)

    def init(rng: jax.Array) -> Variables:
        return params.unbox(boxed(rng))

    abstract = jax.eval_shape(boxed, jax.random.key(0))
    return Model(
        init,
        applied(module),
        params.logical_axes(abstract),
        stddevs=params.stddevs(abstract['params']),
    )


def applied(module: nn.Module) -> Callable[..., tuple[Any, Variables]]:
    """The `apply` of a Linen module."""

    def apply(
        variables: Variables,
        inputs: Any,
        train: bool = False,
        rngs: dict[str, jax.Array] | None = None,
    ) -> tuple[Any, Variables]:
        changing = [name for name in variables if name == 'cache' or (train and name != 'params')]
        changing += PASSING if train else ()
        return module.apply(variables, inputs, train=train, rngs=rngs, mutable=changing)

    return apply
