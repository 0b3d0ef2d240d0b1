"""Checkpoints: the whole state with Orbax, asynchronous, sharded, readable on any mesh.

`checkpoints/<step>` appears in one piece: Orbax writes `<step>.partial`, all processes together,
then process 0 adds the manifest and gives it its name. What has a number for a name was therefore
whole once; it is good as long as its files are those of its manifest.
"""

import logging
import math
import shutil
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from bigjax import trees
from bigjax.config import CheckpointConfig, InitFrom
from bigjax.errors import CheckpointError, EnvironmentProblem, one_line
from bigjax.sharding import hosts
from bigjax.train import manifest
from bigjax.train.selection import sign
from bigjax.train.state import TrainState

FOLDER = 'checkpoints'
PARTIAL = '.partial'

VERIFY_SECONDS = 3600

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a run, and the one that is on its way to disk; a context manager.

    rejected: steps whose checkpoint was found to be bad; they count as none.
    """

    def __init__(self, directory: Path, config: CheckpointConfig):
        self.directory, self.config = directory, config
        self.rejected: set[int] = set()
        self.pool = ThreadPoolExecutor(1)
        self.saving: Future[bool] | None = None
        self.failures = 0

    def wait(self) -> bool:
        """Until the last save is on disk, or not: whether it is, or another is to be tried.

        Raises: EnvironmentProblem if it failed, and would again.
        """
        saving, self.saving = self.saving, None
        return saving is None or saving.result()

    def lost(self) -> bool:
        """Whether the last save has failed already. Raises: as `wait`."""
        return self.saving is not None and self.saving.done() and not self.wait()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()
        self.wait()


def open_checkpoints(workdir: Path, config: CheckpointConfig) -> Checkpoints:
    """The checkpoints of a run: the latest `keep` stay, and the best where a metric is named."""
    return Checkpoints((workdir / FOLDER).absolute(), config)


def save(
    checkpoints: Checkpoints, step: int, state: TrainState, metrics: Mapping[str, float]
) -> None:
    """Starts saving `state`; returns when its values are copied, before they are on disk.

    Raises: EnvironmentProblem if this save fails at once, or the last one has failed.
    """
    _save(checkpoints, step, vars(state), metrics)


def save_params(checkpoints: Checkpoints, params: Any) -> None:
    """Parameters alone, at step 0; returns when they are on disk. Raises: EnvironmentProblem."""
    _save(checkpoints, 0, {'params': params}, {})
    checkpoints.wait()


def _save(checkpoints: Checkpoints, step: int, tree: Any, metrics: Mapping[str, float]) -> None:
    checkpoints.wait()
    try:
        with _uncompressed():
            writing = ocp.save_async(checkpoints.directory / f'{step}{PARTIAL}', tree)
    except Exception as error:  # of the file system, by the hand of several libraries
        raise _failed(checkpoints, step, error) from error
    checkpoints.saving = checkpoints.pool.submit(_commit, checkpoints, step, writing, metrics)


def _uncompressed() -> ocp.Context:
    """Weights shrink by 8 % at most, which would take six times the processor time of a save."""
    context = ocp.Context()
    context.array.saving.use_compression = False
    return context


def _commit(
    checkpoints: Checkpoints, step: int, writing: Any, metrics: Mapping[str, float]
) -> bool:
    """Waits for all processes' files; process 0 vouches for them and deletes what is too old.

    False after an error that may pass, if not too many came in a row.
    """
    try:
        writing.result()
        if hosts.leads():
            unnamed = checkpoints.directory / f'{step}{PARTIAL}'
            manifest.patiently(partial(manifest.write, unnamed, step, metrics))
            named = checkpoints.directory / str(step)
            if step in checkpoints.rejected:
                shutil.rmtree(named)
                checkpoints.rejected.discard(step)
            manifest.patiently(partial(unnamed.rename, named))
            _retire(checkpoints, step)
    except Exception as error:
        failed = _failed(checkpoints, step, error)
        lasts = checkpoints.failures == len(manifest.WAITS) or not manifest.may_pass(error)
        if lasts or jax.process_count() > 1:  # the others do not know of it
            raise failed from error
        log.warning('%s; another save is tried', failed)
        time.sleep(manifest.WAITS[checkpoints.failures])
        checkpoints.failures += 1
        return False
    checkpoints.failures = 0
    return True


def _failed(checkpoints: Checkpoints, step: int, error: Exception) -> EnvironmentProblem:
    if hosts.leads():
        for left in checkpoints.directory.glob(f'{step}{PARTIAL}*'):
            shutil.rmtree(left, ignore_errors=True)
    there = steps(checkpoints)
    return EnvironmentProblem(
        f'step {step} could not be saved in {checkpoints.directory}: {one_line(error)[:400]}; '
        + (f'the last checkpoint is of step {there[-1]}' if there else 'nothing was saved before')
    )


def _retire(checkpoints: Checkpoints, newest: int) -> None:
    """Deletes what is older than `newest`, but for those to keep. `newest` itself is good."""
    there = [step for step in steps(checkpoints) if step <= newest]
    kept = [step for step in there if step not in checkpoints.rejected][-checkpoints.config.keep :]
    if checkpoints.config.best is not None:
        kept += _by_score(checkpoints, checkpoints.config.best)[:1]
    for step in set(there) - set(kept):
        gone = checkpoints.directory / f'{step}{PARTIAL}'  # never half a checkpoint with a number
        (checkpoints.directory / str(step)).rename(gone)
        shutil.rmtree(gone)


def sweep(checkpoints: Checkpoints) -> None:
    """Deletes what killed saves left, and warns of what else is there; for who holds the lock."""
    if not checkpoints.directory.is_dir():
        return
    good = set(map(str, steps(checkpoints)))
    for path in checkpoints.directory.iterdir():
        if PARTIAL in path.name:
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in good:
            log.warning('%s is no checkpoint, and ignored', path)


def steps(checkpoints: Checkpoints) -> list[int]:
    """The steps of which there is a checkpoint, good or bad, oldest first."""
    if not checkpoints.directory.is_dir():
        return []
    marks = (manifest.NAME, '_CHECKPOINT_METADATA', 'orbax.checkpoint')
    return sorted(
        int(path.name)
        for path in manifest.patiently(lambda: list(checkpoints.directory.iterdir()))
        if path.name.isdecimal() and any((path / mark).is_file() for mark in marks)
    )


def latest_good(checkpoints: Checkpoints) -> int | None:
    """The newest step whose checkpoint is as it was written; None if there are no checkpoints.

    Those that are not are logged. Every process must come here.
    Raises: CheckpointError if there are checkpoints but no good one, or one of a later format.
    """

    def find() -> int | None:
        there = steps(checkpoints)
        return _first_good(checkpoints, reversed(there)) if there else None

    return hosts.first('latest', find, VERIFY_SECONDS)


def _first_good(checkpoints: Checkpoints, candidates: Iterable[int]) -> int:
    faults = []
    for step in candidates:
        fault = manifest.fault(checkpoints.directory / str(step))
        if fault is None:
            return step
        log.warning('checkpoint %d is not used: %s', step, fault)
        checkpoints.rejected.add(step)
        faults.append(fault)
    raise CheckpointError(
        f'no good checkpoint in {checkpoints.directory}: {"; ".join(faults[:3])}; bring one back '
        'from a copy, or start anew in another --workdir'
    )


def _by_score(checkpoints: Checkpoints, best: str) -> list[int]:
    """The steps that have the metric `best`, from the best on; of equals the oldest first."""
    scores = {}
    for step in steps(checkpoints):
        if step not in checkpoints.rejected:
            try:
                metrics = manifest.read(checkpoints.directory / str(step))['metrics']
            except (OSError, ValueError) as error:
                log.warning('checkpoint %d is not used: %s', step, error)
                continue
            if best in metrics and not math.isnan(metrics[best]):
                scores[step] = sign(best) * metrics[best]
    return sorted(scores, key=lambda step: -scores[step])


def pick(checkpoints: Checkpoints, which: str, best: str | None) -> int:
    """The step of the checkpoint `which`: 'latest', 'best' (by the metric `best`) or a number.

    It is good; of 'latest' and 'best', the next one where there is a fault. Every process must come
    here. Raises: CheckpointError saying what there is.
    """
    return hosts.first('pick', partial(_pick, checkpoints, which, best), VERIFY_SECONDS)


def _pick(checkpoints: Checkpoints, which: str, best: str | None) -> int:
    there = steps(checkpoints)
    if not there:
        raise CheckpointError(f'no checkpoint in {checkpoints.directory}; train first')
    if which == 'latest':
        return _first_good(checkpoints, reversed(there))
    if which == 'best':
        scored = _by_score(checkpoints, best) if best else []
        if not scored:
            raise CheckpointError(
                f'no best checkpoint in {checkpoints.directory}: the run did not set '
                'config.checkpoint.best'
            )
        return _first_good(checkpoints, scored)
    if not which.isdecimal() or int(which) not in there:
        raise CheckpointError(
            f'no checkpoint {which!r} in {checkpoints.directory}; expected latest, best or one of '
            + ', '.join(map(str, there))
        )
    return _first_good(checkpoints, [int(which)])


def restore(checkpoints: Checkpoints, step: int, abstract: TrainState) -> TrainState:
    """The state saved at `step`, every leaf placed as the shardings of `abstract` say.

    Raises: CheckpointError naming the leaves that are missing, left over or of another shape.
    """
    expected = vars(abstract)
    _require_same(checkpoints, step, saved_shapes(checkpoints, step), _shapes(expected))
    return TrainState(**ocp.load(checkpoints.directory / str(step), expected))


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


def branch(config: InitFrom, abstract: TrainState) -> tuple[TrainState, int]:
    """The whole state of another run, and its step. Raises: CheckpointError."""
    workdir = Path(config.run)
    if not (workdir / FOLDER).is_dir():
        raise CheckpointError(f'config.init_from.run: no checkpoints in {workdir}')
    with open_checkpoints(workdir, CheckpointConfig()) as checkpoints:
        step = pick(checkpoints, config.checkpoint, None)
        return restore(checkpoints, step, abstract), step


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
    path = checkpoints.directory / str(step)
    saved = ocp.metadata(path).metadata
    targets = trees.map_with_name(lambda name, _: wanted.get(name, ocp.PLACEHOLDER), saved)
    loaded = jax.tree.leaves_with_path(ocp.load(path, targets))
    found = {trees.path_name(path): leaf for path, leaf in loaded}
    return {name: found[name] for name in wanted}


def saved_shapes(checkpoints: Checkpoints, step: int) -> dict[str, tuple[int, ...]]:
    """Of every leaf but keys, by its path."""
    return _shapes(ocp.metadata(checkpoints.directory / str(step)).metadata)


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
