"""What the layers of a model put out, by name: the features of a probe."""

import functools
from typing import Any

import flax.linen as nn
import jax
from flax.linen.module import InterceptorContext

from bigjax.errors import ConfigError
from bigjax.models.core import Model, Variables
from bigjax.trees import compile_pattern


def activations(
    model: Model, variables: Variables, inputs: Any, pattern: str = '.*'
) -> dict[str, jax.Array]:
    """Outputs of the Linen layers whose path matches, in evaluation; of a layer that is called more
    than once, the last. Layers that return several arrays are left out; the path of the model
    itself is empty.

    Raises: ConfigError where there is none, or it is scanned or rematerialised.
    """
    watched = functools.partial(watch, model, pattern=pattern)
    try:
        found = jax.jit(watched)(variables, inputs)
    except jax.errors.UnexpectedTracerError:
        raise ConfigError(
            f'activations: {pattern!r} expects layers that are not scanned or rematerialised; '
            "build the model with scan=False and remat='none'"
        ) from None
    if not found:
        raise ConfigError(f'activations: pattern {pattern!r} picks no layer of the model')
    return found


def watch(
    model: Model, variables: Variables, inputs: Any, pattern: str = '.*', **options: Any
) -> dict[str, jax.Array]:
    """`activations` for use under a jit of one's own, which may fail as JAX fails; the options are
    those of `Model.apply`."""
    compiled = compile_pattern(pattern, 'activations')
    found: dict[str, jax.Array] = {}

    def take(call: Any, args: Any, kwargs: Any, context: InterceptorContext) -> Any:
        outputs, name = call(*args, **kwargs), '/'.join(context.module.path)
        arrays = jax.tree.leaves(outputs)
        if context.method_name == '__call__' and len(arrays) == 1 and compiled.search(name):
            found[name] = arrays[0]
        return outputs

    with nn.intercept_methods(take):
        model.apply(variables, inputs, **options)
    return found
