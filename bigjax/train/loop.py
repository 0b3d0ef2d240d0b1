"""The loop. At every step, in this order: evaluate, save, fetch, step, log.

Device values are read one step after they were dispatched, so the host never holds the devices up;
only evaluation and saving wait for them.
"""

import dataclasses
import logging
import time
from collections.abc import Generator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from bigjax import memory, metrics, schema
from bigjax.config import Config
from bigjax.data import batches
from bigjax.data.core import Batch
from bigjax.durations import Duration
from bigjax.errors import Diverged, Preempted
from bigjax.models.flops import parameter_counts
from bigjax.sharding import hosts
from bigjax.sharding.mesh import process_rows
from bigjax.train import (
    checkpoint,
    evaluate,
    folder,
    lock,
    outcome,
    profiling,
    selection,
)
from bigjax.train.build import Run, build, metric_names, with_pretrained_shape
from bigjax.train.checkpoint import Checkpoints
from bigjax.train.clock import Clock, Work
from bigjax.train.judge import Judge
from bigjax.train.model_flops import model_flops
from bigjax.train.preemption import Stop, stop_requests
from bigjax.train.profiling import Tracer
from bigjax.train.progress import Progress, final_table, logging_to, progress
from bigjax.train.start import first_state
from bigjax.train.state import TrainState
from bigjax.train.watchdog import Beat, watchdog
from bigjax.train.witness import witness
from bigjax.train.writers import Writer, columns, open_sinks, read_metrics

log = logging.getLogger(__name__)

WAITING = 'waiting for the devices'


def train(
    config: Config,
    workdir: Path,
    console: Console | None = None,
    profiled: range = profiling.NOTHING,
) -> dict[str, float]:
    """Trains to the end of the config, from the latest good checkpoint in `workdir` if it has any.

    profiled: steps whose trace goes into `workdir/profile`, counted by those that are done before.
    Returns the final metrics, keys as in metrics.jsonl. Raises: BigjaxError, each with its exit
    code.
    """
    started = time.perf_counter()
    config = with_pretrained_shape(config)
    leads = hosts.leads()
    console = console if console is not None and leads else Console(quiet=True)
    with (
        stop_requests() as stop,
        lock.held(workdir) as taken_over,
        logging_to(workdir if leads else None, console),
    ):
        if taken_over:
            log.warning(taken_over)
        folder.claim(workdir, config)
        run = build(config)
        _check_metric_names(run)
        folder.claim_tokenizer(workdir, run.splits.tokenizer)
        for note in run.notes:
            log.info(note)
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run.abstract))
        hosts.first('space', partial(folder.require_space, workdir, needed), 60)
        with (
            jax.set_mesh(run.mesh),
            memory.accounted(run.abstract),
            checkpoint.open_checkpoints(workdir, config.checkpoint) as checkpoints,
        ):
            began = time.perf_counter()
            state, restored = first_state(run, checkpoints)
            restoring = 0.0 if restored is None else time.perf_counter() - began
            profiling.check_steps(profiled, restored or 0, run.total_steps)
            sinks = (
                open_sinks(config.sinks, workdir, restored, schema.to_dict(config)) if leads else {}
            )
            tracer = profiling.Tracer(profiled if leads else profiling.NOTHING, workdir / 'profile')
            with Writer(workdir if leads else None, restored, sinks) as writer, tracer:
                work, formula = _work(run)
                params = run.abstract.params
                counts = parameter_counts(params, run.recipe.model.axes['params'], tied_head=False)
                seconds = time.perf_counter() - started
                writer.event(
                    'start',
                    restored,
                    seconds=seconds,
                    restore_seconds=restoring,
                    processes=jax.process_count(),
                    steps=run.total_steps,
                    params=counts.total,
                    params_nonembedding=counts.nonembedding,
                    formula=formula,
                    **dataclasses.asdict(work),
                )
                clock = Clock(work, started)
                with (
                    progress(run.total_steps, restored or 0, console) as show,
                    watchdog(config.guard.seconds, workdir) as beat,
                ):
                    session = Session(
                        run, workdir, checkpoints, writer, show, clock, tracer, beat, stop
                    )
                    try:
                        state = session.run(state, restored or 0)
                    except Diverged:
                        session.log()
                        raise
                checkpoints.wait()
                stop.holds = False
                results = _conclude(run, workdir, checkpoints, state, writer)
        final_table(results, console)
    return results


class Session:
    """One attempt: the loop and what it has to remember from step to step."""

    def __init__(
        self,
        run: Run,
        workdir: Path,
        checkpoints: Checkpoints,
        writer: Writer,
        show: Progress,
        clock: Clock,
        tracer: Tracer,
        beat: Beat,
        asked_to_stop: Stop,
    ):
        self.asked_to_stop = asked_to_stop
        self.ran = run
        self.checkpoints = checkpoints
        self.writer = writer
        self.show = show
        self.history = hosts.first('history', partial(_history, workdir), 60)
        self.evaluate = outcome.evaluator(run)
        self.pending: tuple[int, dict[str, Any]] | None = None
        self.clock, self.tracer, self.beat = clock, tracer, beat
        self.judge = Judge(run, checkpoints, writer, clock, beat)
        self.last_values: dict[str, float] = {}

    def run(self, state: TrainState, start: int) -> TrainState:
        """The state after the last step. Raises: Preempted, Diverged."""
        run = self.ran
        step_function = run.jitted_step()
        stop = run.total_steps
        eval_due, save_due, log_due = (
            partial(_is_due, run.horizon.steps(every), stop) for every in self._cadences()
        )
        compare_every = run.horizon.steps(run.config.guard.replicas)
        with closing(_stream(run, start)) as stream:
            for step in range(start, stop + 1):
                # here `step` updates are done, or dispatched
                finished = step == stop
                save_again = self.checkpoints.lost()
                if step > start or (eval_due(step) and self._missed(step)):
                    improved = eval_due(step) and self._evaluate(step, state)
                    request = self.asked_to_stop()
                    stopping = bool(request) or self._waited_enough(eval_due(step))
                    if compare_every and step % compare_every == 0:
                        self.judge.compare(step, state)
                    # weights that may be ruined push no good ones out
                    due = save_due(step) and (finished or not self.judge.refused())
                    if step == start:  # only its evaluation was missed
                        due = False
                        if improved:
                            self.checkpoints.rejected.add(step)  # has no metrics yet
                    if improved or due or save_again or (stopping and step > start):
                        self._save(step, state)
                    while (finished or stopping) and not self.checkpoints.wait():
                        self._save(step, state)
                    if request and not finished:
                        raise Preempted(f'stopped by {request} and saved at step {step}')
                    if stopping:
                        break
                if finished:
                    break
                self.tracer.begin(step, state)
                self.beat(step + 1, hosts.DATA)
                with self.clock.waiting():
                    batch = next(stream)
                self.beat(step + 1, '' if step == start else WAITING)
                started = time.perf_counter()
                with jax.profiler.StepTraceAnnotation('train', step_num=step + 1):
                    state, logged = step_function(state, batch)
                self.asked_to_stop.holds = True
                if step == start:
                    seconds = time.perf_counter() - started
                    self.writer.event('compile', step, seconds=seconds)
                    self.clock.restart(step + 1)
                self.log()
                self.show.update(step)
                state = self.judge.hear(step + 1, logged, state)
                if log_due(step + 1) or step == start:
                    self.pending = step + 1, logged
                if self.tracer.ends(step + 1, state):
                    with self.clock.paused():
                        started = time.perf_counter()
                        compiled = step_function.lower(state, batch).compile()  # no second time
                        log.info(self.tracer.finish(compiled.as_text() or ''))
                        seconds = time.perf_counter() - started
                        self.writer.event('profile', step + 1, seconds=seconds)
        self.log()
        self.beat(stop, '')
        return state

    def _cadences(self) -> tuple[Duration, Duration, Duration]:
        config = self.ran.config
        return config.eval.every, config.checkpoint.every, config.train.log_every

    def _evaluate(self, step: int, state: TrainState) -> bool:
        """Evaluates on val, where there is one; whether the checkpoint's metric is at its best."""
        source = self.ran.splits.sources.get('val')
        if source is None:
            return False
        self.log()
        self.judge.refused()
        self.beat(step, '')
        with self.clock.paused():
            started = time.perf_counter()
            found = self.evaluate(state.eval_variables, source, self.asked_to_stop)
            if found is None:
                return False  # is made up for on resuming
            values = evaluate.scalars(found, 'val')
            self.writer.metrics(step, values)
            self.writer.event('eval', step, seconds=time.perf_counter() - started)
        self.last_values = values
        self.show.update(step, values)
        for name, value in values.items():
            self.history.setdefault(name, []).append((step, value))
        best = self.ran.config.checkpoint.best
        return best is not None and selection.best_step(best, self.history[best]) == step

    def _missed(self, step: int) -> bool:
        """Whether the attempt before was stopped in its evaluation after `step`."""
        points = [point for name in self.history for point in self.history[name]]
        has_val = 'val' in self.ran.splits.sources
        return step > 0 and has_val and all(at != step for at, _ in points)

    def _waited_enough(self, evaluated: bool) -> bool:
        config = self.ran.config.train.early_stopping
        if config is None or not evaluated:
            return False
        return selection.should_stop(config, self.history.get(config.metric, []))

    def _save(self, step: int, state: TrainState) -> None:
        self.log()
        self.judge.refused()
        self.beat(step, '')
        self.writer.event('steps', step, **self.clock.steps())
        with self.clock.paused():
            started = time.perf_counter()
            self.judge.require_finite(step, state)
            scored = {
                name: points[-1][1]
                for name, points in self.history.items()
                if points[-1][0] == step
            }
            checkpoint.save(self.checkpoints, step, state, scored)
            self.writer.event('save', step, seconds=time.perf_counter() - started)

    def log(self) -> None:
        """Reads and writes the metrics that wait, if any."""
        if self.pending is None:
            return
        step, values = self.pending
        self.pending = None
        run = self.ran
        host = jax.device_get(values)
        host = {name: value for name, value in host.items() if name not in ('verdict', 'in_row')}
        groups = run.recipe.train_groups
        measured = metrics.compute(groups, metrics.accumulate(groups, None, host.pop('metrics')))
        numbers = {f'train/{name}': float(value) for name, value in {**host, **measured}.items()}
        timing = self.clock.lap(step)
        if timing:
            self.judge.find_stragglers(step, timing['data_wait_seconds'], timing['step_seconds'])
        numbers |= {f'perf/{name}': value for name, value in timing.items()}
        self.writer.metrics(step, numbers)
        self.show.update(step, numbers)


def _work(run: Run) -> tuple[Work, str]:
    """What a step does, and by which formula its FLOPs are counted."""
    flops = model_flops(run)
    kind, size = run.mesh.devices.flat[0].device_kind, run.config.train.batch_size
    tokens = run.splits.spec.tokens
    tokens = None if tokens is None else size * tokens
    return Work(size, tokens, flops.a_step, kind, run.mesh.size), flops.formula


def _stream(run: Run, start: int) -> Generator[Batch, None, None]:
    """This process's batches from step `start` on, already on their way to the devices."""
    config, source, sharding = run.config, run.splits.sources['train'], run.batch_sharding
    size = config.train.batch_size
    rows, see = process_rows(sharding, size), witness()

    def make(step: int) -> Batch:
        batch = see(step, rows, batches.train_batch(source, config.seed, step, size, rows))
        return batches.to_device(batch, sharding, size)

    return batches.prefetched(make, start, run.total_steps, config.data.prefetch)


def _conclude(
    run: Run, workdir: Path, checkpoints: Checkpoints, state: TrainState, writer: Writer
) -> dict[str, float]:
    """Evaluates val and test in full, on the best checkpoint if one is kept, else the last."""
    started = time.perf_counter()
    best = run.config.checkpoint.best
    last = step = int(state.step)
    if best is not None:
        step = checkpoint.pick(checkpoints, 'best', best)
        state = checkpoint.restore(checkpoints, step, run.abstract)
    results: dict[str, float] = {}
    for split in ('val', 'test'):
        if split in run.splits.sources:
            results |= outcome.report_split(run, state.eval_variables, split, step, workdir)
    test = {name: value for name, value in results.items() if name.startswith('test/')}
    if test and hosts.leads() and not _is_tested(workdir):  # a finished run that is run again
        writer.metrics(last, test)
    writer.event('final_eval', step, seconds=time.perf_counter() - started)
    writer.event('done', last)
    return results


def _is_tested(workdir: Path) -> bool:
    return any('test/loss' in row for row in read_metrics(workdir))


def _history(workdir: Path) -> dict[str, list[tuple[int, float]]]:
    """Values of val so far, by name. Read by process 0, which writes them."""
    if not (workdir / 'metrics.jsonl').is_file():
        return {}
    return {
        name: list(zip(steps.tolist(), values.tolist(), strict=True))
        for name, (steps, values) in columns(read_metrics(workdir)).items()
        if name.startswith('val/')
    }


def _is_due(every: int, stop: int, step: int) -> bool:
    """Whether something done `every` so many steps (0: only at the end) is due after `step`."""
    return step == stop or (every > 0 and step % every == 0)


def _check_metric_names(run: Run) -> None:
    measured = [f'val/{name}' for name in ('loss', *metric_names(run.config, run.recipe.task))]
    measured = measured if 'val' in run.splits.sources else []
    if run.config.checkpoint.best is not None:
        selection.check_metric(run.config.checkpoint.best, measured, 'config.checkpoint.best')
    if run.config.train.early_stopping is not None:
        metric = run.config.train.early_stopping.metric
        selection.check_metric(metric, measured, 'config.train.early_stopping.metric')
