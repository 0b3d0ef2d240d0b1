"""What the host makes of what the devices tell: updates that were refused, copies of the parameters
that differ, processes that are slow, a state that is not to be saved."""

import dataclasses
import logging
import statistics
import time
from typing import Any

import jax

from bigjax.data import batches
from bigjax.errors import Diverged
from bigjax.sharding import hosts
from bigjax.sharding.mesh import replicated
from bigjax.train import checkpoint, guard, replicas
from bigjax.train.build import Run
from bigjax.train.checkpoint import Checkpoints
from bigjax.train.clock import Clock
from bigjax.train.state import TrainState, nonfinite
from bigjax.train.watchdog import Beat
from bigjax.train.writers import Writer

log = logging.getLogger(__name__)

WATCHED = ('loss', 'grad_norm', 'verdict', 'in_row')
EVERY = 10
"""Steps between two looks at what was refused; the step itself refuses without being looked at."""
MENDS = 'lower optimizer.learning_rate or set optimizer.clip'


class Judge:
    """Of one attempt. What it finds goes into events.jsonl; what ends the run is raised."""

    def __init__(
        self, run: Run, checkpoints: Checkpoints, writer: Writer, clock: Clock, beat: Beat
    ):
        self.ran, self.checkpoints, self.writer = run, checkpoints, writer
        self.clock, self.beat = clock, beat
        self.in_row = 0
        self.waiting: list[tuple[int, dict[str, Any]]] = []
        self.nonfinite = jax.jit(nonfinite, out_shardings=replicated(run.mesh))
        self.differences = replicas.comparer(run.mesh, run.abstract.params)

    def hear(self, step: int, logged: dict[str, Any], state: TrainState) -> TrainState:
        """Takes what a step returned, to be read later; returns the state to go on from."""
        self.waiting.append((step, {name: logged[name] for name in WATCHED}))
        if self.ran.config.guard.spike == 'roll_back':
            return self._rolled_back(step, state)
        if step % EVERY == 0:
            self.refused(but=1)
        return state

    def refused(self, but: int = 0) -> bool:
        """Tells of the updates heard of that were no good, `but` for the latest ones.

        Whether one was refused and none taken since. Raises: Diverged where the budget is spent.
        """
        count = len(self.waiting) - but
        read, self.waiting = jax.device_get(self.waiting[:count]), self.waiting[count:]
        for step, told in read:
            verdict = guard.VERDICTS[told['verdict']]
            self.in_row = int(told['in_row'])
            if verdict is None:
                continue
            found = {name: float(told[name]) for name in ('loss', 'grad_norm')}
            rows = self._rows(step)
            self.writer.event('bad_step', step, why=verdict, in_row=self.in_row, rows=rows, **found)
            if self.in_row >= self.ran.config.guard.budget:
                self.checkpoints.wait()
                there = checkpoint.steps(self.checkpoints)
                self.writer.event('diverged', step, **found)
                named = ', '.join(map(str, rows[:8])) + (', ...' if rows[8:] else '')
                raise Diverged(
                    f'step {step}, on rows {named} of train: train/loss is {found["loss"]:g}, '
                    f'gradient norm {found["grad_norm"]:g}; {self.in_row} updates in a row were '
                    f'refused; {MENDS}; '
                    + (f'the last checkpoint is of {there[-1]}' if there else 'nothing was saved')
                )
        return self.in_row > 0

    def compare(self, step: int, state: TrainState) -> None:
        """Raises: Diverged where a copy of the parameters is not what the others are."""
        with self.clock.paused():
            started = time.perf_counter()
            different = self.differences(state.params)
            seconds = time.perf_counter() - started
            self.writer.event('compare', step, seconds=seconds, different=different)
        if different:
            raise Diverged(f'step {step}: silent data corruption: {different[0]}; replace it')

    def find_stragglers(self, step: int, waited: float, seconds: float) -> None:
        """Tells of processes whose data takes twice the median, and a tenth of a step more."""
        every = hosts.told('data_wait_seconds', waited)
        usual = statistics.median_low(every.values()) if every else 0.0
        limit = max(2 * usual, usual + seconds / 10)
        slow = {process: own for process, own in every.items() if own > limit}
        if slow:
            self.writer.event('straggler', step, data_wait_seconds=slow, median=usual)

    def require_finite(self, step: int, state: TrainState) -> None:
        """Raises: Diverged for a state with a NaN or an infinity in any leaf."""
        bad = [name for name, found in jax.device_get(self.nonfinite(state)).items() if found]
        if bad:
            self.writer.event('diverged', step, leaves=bad)
            raise Diverged(
                f'step {step} is not saved: {bad[0]} is not finite, nor are {len(bad) - 1} more; '
                f'{MENDS}'
            )

    def _rolled_back(self, step: int, state: TrainState) -> TrainState:
        """The last checkpoint's state, as that after `step`, if that step was a spike. Waits."""
        spiked = guard.VERDICTS[int(self.waiting[-1][1]['verdict'])] == guard.SPIKE
        self.refused()
        if not spiked:
            return state
        self.beat(step, '')
        with self.clock.paused():
            started = time.perf_counter()
            self.checkpoints.wait()
            last = checkpoint.latest_good(self.checkpoints)
            if last is None:
                raise Diverged(f'step {step}: the loss spikes, and there is no checkpoint to go to')
            back = checkpoint.restore(self.checkpoints, last, self.ran.abstract)
            self.writer.event('roll_back', step, to=last, seconds=time.perf_counter() - started)
        log.warning('step %d: the loss spikes; on with the weights of step %d', step, last)
        return dataclasses.replace(back, step=state.step, guard=state.guard)

    def _rows(self, step: int) -> list[int]:
        """Numbers of the rows of the train split that step `step` read."""
        config, source = self.ran.config, self.ran.splits.sources['train']
        size = config.train.batch_size
        return batches.train_indices(len(source), config.seed, (step - 1) * size, size).tolist()
