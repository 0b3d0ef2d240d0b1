"""Checkpoints: the whole state with Orbax, asynchronous, sharded, readable on any mesh."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
from orbax.checkpoint import v1 as ocp

from bigjax import trees
from bigjax.config import CheckpointConfig, InitFrom
from bigjax.errors import CheckpointError
from bigjax.train.selection import sign
from bigjax.train.state import TrainState

FOLDER = 'checkpoints'

Checkpoints: TypeAlias = ocp.training.Checkpointer


def open_checkpoints(workdir: Path, config: CheckpointConfig) -> Checkpoints:
    """The checkpoints of a run: the latest `keep` stay, and the best where a metric is named."""
    policies = ocp.training.preservation_policies
    kept: list[Any] = [policies.LatestN(config.keep)]
    if config.best is not None:
        metric, direction = config.best, sign(config.best)
        kept.append(
            policies.BestN(
                get_metric_fn=lambda metrics: direction * metrics[metric],
                n=1,
                keep_checkpoints_without_metrics=False,
            )
        )
    return Checkpoints(
        (workdir / FOLDER).absolute(),
        # The loop decides when to save; Orbax only whether it can.
        save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
        preservation_policy=policies.AnyPreservationPolicy(kept),
        cleanup_tmp_directories=True,
    )


def save(
    checkpoints: Checkpoints, step: int, state: TrainState, metrics: Mapping[str, float]
) -> None:
    """Starts saving `state`; returns when its values are copied, before they are on disk."""
    checkpoints.save_async(step, vars(state), force=True, metrics=dict(metrics) or None)


def save_params(checkpoints: Checkpoints, params: Any) -> None:
    """Parameters alone, at step 0; returns when they are on disk."""
    checkpoints.save_async(0, {'params': params}, force=True)
    checkpoints.wait()


def steps(checkpoints: Checkpoints) -> list[int]:
    """The steps at which a whole checkpoint exists, oldest first."""
    return [checkpoint.step for checkpoint in checkpoints.checkpoints]


def pick(checkpoints: Checkpoints, which: str, best: str | None) -> int:
    """The step of the checkpoint `which`: 'latest', 'best' (by the metric `best`) or a number.

    Raises: CheckpointError saying what there is.
    """
    there = steps(checkpoints)
    if not there:
        raise CheckpointError(f'no checkpoint in {checkpoints.directory}; train first')
    if which == 'latest':
        return there[-1]
    if which == 'best':
        scored = [point for point in checkpoints.checkpoints if point.metrics and best]
        if not scored or best is None:
            raise CheckpointError(
                f'no best checkpoint in {checkpoints.directory}: the run did not set '
                'config.checkpoint.best'
            )
        return max(scored, key=lambda point: sign(best) * point.metrics[best]).step
    if not which.isdigit() or int(which) not in there:
        raise CheckpointError(
            f'no checkpoint {which!r} in {checkpoints.directory}; expected latest, best or one of '
            + ', '.join(map(str, there))
        )
    return int(which)


def restore(checkpoints: Checkpoints, step: int, abstract: TrainState) -> TrainState:
    """The state saved at `step`, every leaf placed as the shardings of `abstract` say.

    Raises: CheckpointError naming the leaves that are missing, left over or of another shape.
    """
    expected = vars(abstract)
    _require_same(checkpoints, step, saved_shapes(checkpoints, step), _shapes(expected))
    return TrainState(**checkpoints.load(step, expected))


def init_params(config: InitFrom, params: Any) -> tuple[Any, list[str]]:
    """`params` with the leaves that another run has under the same name, and what was not loaded.

    params: arrays in place; a leaf is loaded where its path matches `config.leaves` and its shape
    agrees. Raises: CheckpointError if no leaf is loaded at all.
    """
    workdir = Path(config.run)
    if not (workdir / FOLDER).is_dir():
        raise CheckpointError(f'config.init_from.run: no checkpoints in {workdir}')
    with open_checkpoints(workdir, CheckpointConfig()) as checkpoints:
        step = pick(checkpoints, config.checkpoint, None)
        saved = saved_shapes(checkpoints, step)
        wanted = trees.compile_pattern(config.leaves, 'config.init_from.leaves')
        chosen: dict[str, jax.ShapeDtypeStruct] = {}
        skipped: list[str] = []

        def choose(name: str, leaf: jax.Array) -> None:
            shape = saved.get(f'params/{name}')
            if not wanted.search(name):
                skipped.append(f'{name}: does not match {config.leaves!r}')
            elif shape is None:
                skipped.append(f'{name}: not in {config.run}')
            elif shape != leaf.shape:
                skipped.append(f'{name}: shape {shape} there, {leaf.shape} here')
            else:
                place = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
                chosen[f'params/{name}'] = place

        trees.map_with_name(choose, params)
        if not chosen:
            raise CheckpointError(f'config.init_from: nothing to load; {skipped[0]}')
        loaded = _load_leaves(checkpoints, step, chosen)
    merged = trees.map_with_name(lambda name, leaf: loaded.get(f'params/{name}', leaf), params)
    return merged, skipped


def restore_variables(checkpoints: Checkpoints, step: int, abstract: TrainState) -> Any:
    """What evaluation applies the model to, without the optimizer. Raises: CheckpointError."""
    collections = abstract.collections
    if collections:
        collections = _load_tree(checkpoints, step, 'collections', collections)
    return {'params': restore_params(checkpoints, step, abstract.params), **collections}


def restore_params(checkpoints: Checkpoints, step: int, abstract: Any) -> Any:
    """The parameters that evaluation takes (averaged ones where they are), and nothing else.

    abstract: their shapes and shardings. Raises: CheckpointError naming what is not as expected.
    """
    saved = saved_shapes(checkpoints, step)
    part = 'ema' if any(name.startswith('ema/') for name in saved) else 'params'
    kept = {name: shape for name, shape in saved.items() if name.startswith(f'{part}/')}
    _require_same(checkpoints, step, kept, _shapes({part: abstract}))
    return _load_tree(checkpoints, step, part, abstract)


def _load_tree(checkpoints: Checkpoints, step: int, part: str, abstract: Any) -> Any:
    """A part of the state; all of its leaves are there."""
    names = [f'{part}/{name}' for name in trees.names(abstract)]
    wanted = dict(zip(names, jax.tree.leaves(abstract), strict=True))
    loaded = _load_leaves(checkpoints, step, wanted)
    return jax.tree.unflatten(jax.tree.structure(abstract), [loaded[name] for name in names])


def _load_leaves(
    checkpoints: Checkpoints, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Some leaves of the state by their paths; Orbax wants placeholders for all that are saved."""
    saved = checkpoints.metadata(step).metadata
    targets = trees.map_with_name(lambda name, _: wanted.get(name, ocp.PLACEHOLDER), saved)
    loaded = jax.tree.leaves_with_path(checkpoints.load(step, targets))
    found = {trees.path_name(path): leaf for path, leaf in loaded}
    return {name: found[name] for name in wanted}


def saved_shapes(checkpoints: Checkpoints, step: int) -> dict[str, tuple[int, ...]]:
    """Of every leaf but keys, by its path."""
    return _shapes(checkpoints.metadata(step).metadata)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Leaf shapes by path, without the key's: Orbax describes its data, JAX its own scalar."""
    return {
        trees.path_name(path): tuple(leaf.shape)
        for path, leaf in jax.tree.leaves_with_path(tree)
        if trees.path_name(path) != 'rng'
    }


def _require_same(
    checkpoints: Checkpoints,
    step: int,
    saved: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    differences = _differences(saved, expected)
    if differences:
        raise CheckpointError(
            f'checkpoint {checkpoints.directory}/{step} is of another model or optimizer: '
            + '; '.join(differences[:4])
            + (f'; and {len(differences) - 4} more' if len(differences) > 4 else '')
            + '; use the config that it was trained with, or another workdir'
        )


def _differences(
    saved: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
    lines = []
    for name in sorted(saved.keys() | expected.keys()):
        if name not in saved:
            lines.append(f'{name} is not in it')
        elif name not in expected:
            lines.append(f'{name} is only in it')
        elif saved[name] != expected[name]:
            lines.append(f'{name} has shape {saved[name]} in it, {expected[name]} here')
    return lines
