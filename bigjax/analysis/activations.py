"""What the layers of a model put out, by name: the features of a probe."""

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
    than once, the last. Layers that return several arrays are left out.

    Raises: ConfigError where there is none, or it is scanned or rematerialised.
    """
    compiled = compile_pattern(pattern, 'activations')

    def run(variables: Variables, inputs: Any) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}

        def watch(call: Any, args: Any, kwargs: Any, context: InterceptorContext) -> Any:
            outputs, name = call(*args, **kwargs), '/'.join(context.module.path)
            is_layer = context.method_name == '__call__' and isinstance(outputs, jax.Array)
            if is_layer and compiled.search(name):
                found[name] = outputs
            return outputs

        with nn.intercept_methods(watch):
            model.apply(variables, inputs, train=False)
        return found

    try:
        found = jax.jit(run)(variables, inputs)
    except jax.errors.UnexpectedTracerError:
        raise ConfigError(
            f'activations: {pattern!r} expects layers that are not scanned or rematerialised; '
            "build the model with scan=False and remat='none'"
        ) from None
    if not found:
        raise ConfigError(f'activations: pattern {pattern!r} picks no layer of the model')
    return found
