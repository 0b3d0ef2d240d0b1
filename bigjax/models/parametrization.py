"""A model under a parametrization: what it multiplies, and what it draws at first."""

import inspect
from dataclasses import replace
from types import ModuleType
from typing import Any

import jax

from bigjax import components, schema
from bigjax.config import ParametrizationConfig
from bigjax.errors import ConfigError
from bigjax.models.core import Model, Variables
from bigjax.nn.multipliers import Multipliers
from bigjax.optim import parametrization
from bigjax.optim.parametrization import WHERE


def build(
    module: ModuleType,
    options: Any,
    config: ParametrizationConfig,
    inputs: Any,
    outputs: int,
    dtype: Any,
) -> Model:
    """`module.build` of a module of models, with `options` its Config.

    The base model is looked at as shapes only. Raises: ConfigError.
    """
    if config.name == 'sp':
        return module.build(options, inputs, outputs, dtype)
    if 'multipliers' not in inspect.signature(module.build).parameters:
        raise ConfigError(
            f"{WHERE}.name: expected 'sp' for the model {module.__name__}, whose build() takes no "
            f'multipliers, got {config.name!r}'
        )
    values = {**schema.to_dict(options), **config.base}
    base_options = components.build_config(module, values, f'{WHERE}.base')
    given, depth = (inputs, outputs, dtype), _depth(options, config)
    model, base = (module.build(each, *given) for each in (options, base_options))
    shapes, base_shapes = model.abstract()['params'], base.abstract()['params']
    axes = model.axes['params']
    scaling = parametrization.measure(config, shapes, base_shapes, axes, depth)
    multipliers = Multipliers(
        embedding=config.alpha_in,
        read_out=config.alpha_out / scaling.width,
        attention=parametrization.head_ratio(shapes, base_shapes, axes) ** -0.5,
        branch=depth**-config.depth_exponent,
        depth=depth,
    )
    model, base = (
        module.build(each, *given, multipliers=multipliers) for each in (options, base_options)
    )
    factors = parametrization.init_factors(scaling, model.stddevs, base.stddevs)

    def init(rng: jax.Array) -> Variables:
        variables = model.init(rng)
        scaled = jax.tree.map(lambda f, p: p if f == 1 else f * p, factors, variables['params'])
        return {**variables, 'params': scaled}

    return replace(model, init=init, scaling=scaling)


def _depth(options: Any, config: ParametrizationConfig) -> float:
    """Residual blocks over those at the base. Raises: ConfigError for models without any."""
    if config.base_depth is None:
        return 1.0
    if not hasattr(options, 'residual_blocks'):
        raise ConfigError(
            f'{WHERE}.base_depth: expected None for a model without residual blocks, got '
            f'{config.base_depth}; leave it out'
        )
    return options.residual_blocks / config.base_depth
