"""What can be known of many meshes and remat policies before anything is compiled."""

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from bigjax import components, trees
from bigjax.config import Config, with_values
from bigjax.errors import ConfigError
from bigjax.models import flops
from bigjax.nn import blocks
from bigjax.plan import targets
from bigjax.plan.compile import inputs
from bigjax.plan.targets import Target
from bigjax.train.build import Run, build, with_pretrained_shape


@dataclass(frozen=True)
class MeshSketch:
    """sizes: by axis. memory: bytes a device of what goes into a step, by part, as in `Answer`."""

    sizes: dict[str, int]
    memory: dict[str, int]


@dataclass(frozen=True)
class RematSketch:
    """flops: of a step. kept: bytes over all devices that the forward pass leaves the backward."""

    flops: int
    kept: int


@dataclass(frozen=True)
class Sketch:
    """meshes: those that the config can be built on. remats: by policy; '' where there are none."""

    meshes: tuple[MeshSketch, ...]
    remats: dict[str, RematSketch]
    parameters: int


def sketch(settings: Config, target: Target, meshes: Sequence[dict[str, int]]) -> Sketch:
    """Builds the config on each of the meshes, and with each policy, on abstract arrays.

    Raises: ConfigError if it can be built on none.
    """
    devices = targets.devices(target)
    settings = with_pretrained_shape(settings)
    found, refusal = [], None
    for sizes in meshes:
        try:
            run = build(_on(settings, sizes), devices=devices)
        except ConfigError as error:
            refusal = error
            continue
        found.append(MeshSketch(sizes, inputs(run)))
    if not found:
        raise refusal or ConfigError('no mesh to plan for')
    settings = _on(settings, found[0].sizes)
    remats = {}
    for name in policies(settings):
        changed = with_values(settings, **{'model.remat': name}) if name else settings
        run = build(changed, devices=devices)
        with jax.set_mesh(run.mesh):
            step_flops = flops.count(run.jitted_step(), run.abstract, run.abstract_batch).flops
            remats[name] = RematSketch(step_flops, kept(run))
    return Sketch(tuple(found), remats, trees.count(run.abstract.params))


def policies(settings: Config) -> list[str]:
    """The model's remat policies, but for those that need memory elsewhere; [''] if it has none."""
    module = components.find('model', settings.model.name, 'config.model.name')
    if not issubclass(module.Config, blocks.Config):
        return ['']
    remat = typing.get_type_hints(module.Config)['remat']
    return [name for name in typing.get_args(remat) if name != 'offload']


def kept(run: Run) -> int:
    """Bytes of the residuals of the forward pass, a microbatch's, parameters left out."""
    state, recipe = run.abstract, run.recipe

    def losses(params: Any, batch: Any) -> Any:
        def apply(inputs: Any) -> Any:
            variables = {'params': params, **state.collections}
            return recipe.forward(variables, inputs, train=True, rngs={'dropout': key})[0]

        key = jax.random.key(0)
        batch = recipe.standardise(batch)
        if recipe.task.corrupt is not None:
            batch = recipe.task.corrupt(key, batch)
        return recipe.task.loss(apply, batch).values

    residuals = jax.eval_shape(
        lambda params, batch: jax.vjp(lambda p: losses(p, batch), params)[1],
        state.params,
        run.abstract_batch,
    )
    total = trees.num_bytes(residuals) - trees.num_bytes(state.params)
    return max(total, 0) // recipe.accumulation


def _on(settings: Config, sizes: dict[str, int]) -> Config:
    return with_values(settings, **{f'mesh.{axis}': size for axis, size in sizes.items()})
