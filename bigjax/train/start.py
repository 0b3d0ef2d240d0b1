"""Where an attempt begins: its latest checkpoint, another run, pretrained weights, or afresh."""

import logging
from pathlib import Path
from typing import Any

from bigjax import interop
from bigjax.config import InitFrom
from bigjax.sharding import hosts
from bigjax.train import checkpoint, folder
from bigjax.train.build import Run
from bigjax.train.checkpoint import Checkpoints
from bigjax.train.state import TrainState

log = logging.getLogger(__name__)


def first_state(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, int | None]:
    """The latest good checkpoint and its step; else what `init_from` names: another run whole, with
    its step, or a fresh state (no step), perhaps with others' weights.

    Raises: ConfigError, CheckpointError.
    """
    if hosts.leads():
        checkpoint.sweep(checkpoints)
    step = checkpoint.latest_good(checkpoints)
    if step is not None:
        state = checkpoint.restore(checkpoints, step, run.abstract)
        log.info('resuming from step %d of %d', step, run.total_steps)
        return state, step
    source = run.config.init_from
    if source is not None and source.whole:
        state, step = checkpoint.branch(source, run.abstract)
        log.info('going on from step %d of %s', step, source.run)
        return state, step
    state = run.init()
    if source is not None:
        state = run.restart(state, _initial_params(run, source, state.params))
    return state, None


def _initial_params(run: Run, source: InitFrom, params: Any) -> Any:
    """`params` with those of another run, or of the hub. Raises: ConfigError, CheckpointError."""
    tokenizer = run.splits.tokenizer
    if interop.is_pretrained(source.run):
        pretrained = interop.open_pretrained(source.run)
        interop.require_tokens(pretrained, tokenizer)
        params, fresh = interop.read_params(pretrained, params, source.leaves)
    else:
        place = Path(source.run) / folder.TOKENIZER
        if tokenizer is not None and place.is_dir():
            folder.require_tokenizer(place, tokenizer)
        params, fresh = checkpoint.init_params(source, params)
    for line in fresh:
        log.info('init_from left fresh: %s', line)
    return params
