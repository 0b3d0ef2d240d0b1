"""A sweep: the points of a study as runs of `bigjax train`, a few at a time on this machine.

What has a result in the ledger is not run again; what was stopped goes on. Several
sweeps, on several hosts, may share a study: a run that another one holds is left to it.
"""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from bigjax.errors import (
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_PREEMPTED,
    BigjaxError,
    DataError,
    Preempted,
    one_line,
)
from bigjax.study import ledger
from bigjax.study.jobs import Job, label
from bigjax.study.watch import Watch, watching
from bigjax.train import lock
from bigjax.train.writers import Row

OUTPUT = 'output.txt'
TRAIN = (sys.executable, '-m', 'bigjax.cli', 'train')
POLL_SECONDS = 0.2


class _Process(NamedTuple):
    job: Job
    popen: subprocess.Popen
    started: float


def run(
    jobs: Sequence[Job],
    study: Path,
    slots: int = 1,
    retry: bool = False,
    console: Console | None = None,
) -> list[Row]:
    """The rows of `jobs` in the ledger of `study`, after running those that have no result, `slots`
    at a time; those that failed too if `retry`. With 0 slots, only takes in what ran elsewhere.

    Raises: Preempted when asked to stop: what ran has saved, and the next call goes on.
    """
    known = ledger.read(study)
    settled = ledger.RESULTS if retry else (*ledger.RESULTS, 'failed')
    waiting = deque(job for job in jobs if known.get(job.id, {}).get('event') not in settled)
    running: dict[int, _Process] = {}
    with (
        watching(jobs, study, slots, console or Console(quiet=True)) as watch,
        _asked_to_stop() as asked,
    ):
        if not slots:
            waiting = deque(job for job in waiting if not _take_in(job, study, watch))
        while slots and (waiting or running) and not asked():
            for slot in set(range(slots)) - set(running):
                job = _next(waiting, study, watch, {one.job.id for one in running.values()})
                if job is not None:
                    running[slot] = _start(job, study, _environment(slot, slots))
                    watch.tell(job, 'started')
            time.sleep(POLL_SECONDS)
            for slot, process in list(running.items()):
                if process.popen.poll() is not None:
                    del running[slot]
                    if not _settle(process, study, watch, stopping=False):
                        waiting.append(process.job)
        for process in running.values():
            process.popen.send_signal(signal.SIGTERM)
        for process in running.values():
            process.popen.wait()
            _settle(process, study, watch, stopping=True)
    if running or (slots and waiting):
        raise Preempted(f'stopped {len(running)} runs, which saved; the same command goes on')
    rows = ledger.read(study)
    return [rows[job.id] for job in jobs if job.id in rows]


def finish(
    jobs: Sequence[Job],
    study: Path,
    slots: int = 1,
    results: Sequence[str] = ('finished',),
    console: Console | None = None,
) -> list[Row]:
    """As `run`, for those who need every run to end in one of `results`. Raises: DataError."""
    rows = run(jobs, study, slots, retry=True, console=console)
    for row in rows:
        if row['event'] not in results:
            why = row.get('error', f'see {study / ledger.RUNS / row["id"] / OUTPUT}')
            raise DataError(f'run {row["id"]} {row["event"]}: {why}')
    return rows


def show(jobs: Sequence[Job], study: Path, console: Console) -> None:
    """How the runs stand, a line each."""
    known = ledger.read(study)
    for job in jobs:
        settings = label(job.overrides, list(job.overrides))
        line = (
            f'{job.id}  {known.get(job.id, {}).get("event", "waiting"):8}  {job.config}  {settings}'
        )
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _next(waiting: deque[Job], study: Path, watch: Watch, running: set[str]) -> Job | None:
    """The first that nobody runs and that begins from no run still to come, off the queue; those
    with a result elsewhere leave it too."""
    for _ in range(len(waiting)):
        job = waiting.popleft()
        to_come = running | {other.id for other in waiting}
        if lock.is_held(job.folder(study)) or _begins_from(job) in to_come:
            waiting.append(job)
        elif not _take_in(job, study, watch):
            return job
    return None


def _begins_from(job: Job) -> str:
    """The id of the run that it begins from, if that is of a study."""
    return Path(job.overrides.get('init_from.run', '')).name


def _take_in(job: Job, study: Path, watch: Watch) -> bool:
    """Whether the run came to a result, if only in its folder, which the ledger then learns."""
    if not ledger.has_ended(job.folder(study)):
        return False
    if ledger.read(study).get(job.id, {}).get('event') not in ledger.RESULTS:
        _note(job, study, watch, *ledger.outcome(job.folder(study)))
    return True


def _start(job: Job, study: Path, environment: dict[str, str]) -> _Process:
    folder = job.folder(study)
    folder.mkdir(parents=True, exist_ok=True)
    ledger.append(study, 'started', job.id, config=job.config, overrides=job.overrides)
    with (folder / OUTPUT).open('ab') as output:
        popen = subprocess.Popen(
            [*TRAIN, *job.arguments(study)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | environment,
            start_new_session=True,  # Ctrl-C is for us, who pass it on
        )
    return _Process(job, popen, time.time())


def _settle(process: _Process, study: Path, watch: Watch, stopping: bool) -> bool:
    """Notes how a process ended; whether that is the last of its run for now."""
    job, code = process.job, process.popen.returncode
    folder = job.folder(study)
    if code in (EXIT_DONE, EXIT_DIVERGED):
        try:
            _note(job, study, watch, *ledger.outcome(folder))
        except BigjaxError as error:
            _note(job, study, watch, 'failed', {'exit_code': code, 'error': one_line(error)})
        return True
    if code == EXIT_PREEMPTED or stopping:
        _note(job, study, watch, 'stopped', {})
        return False
    if lock.is_held(folder) or ledger.has_ended(folder):  # another sweep was quicker
        return False
    lines = (folder / OUTPUT).read_text(errors='replace').splitlines()
    line = next((line for line in reversed(lines) if line.strip()), f'exit code {code}')
    _note(job, study, watch, 'failed', {'exit_code': code, 'error': line.strip()})
    return True


def _note(job: Job, study: Path, watch: Watch, event: str, details: Row) -> None:
    given = {'config': job.config, 'overrides': job.overrides}
    ledger.append(study, event, job.id, **given, **details)
    watch.tell(job, event, details)


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or Ctrl-C came; a second one is not held back."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def ask(number: int, _: Any) -> None:
        signal.signal(number, before[number])
        asked.append(number)

    with suppress(ValueError):  # not the main thread: somebody else handles signals
        for number in (int(signal.SIGTERM), int(signal.SIGINT)):
            before[number] = signal.signal(number, ask)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment(slot: int, slots: int) -> dict[str, str]:
    """The GPUs of one of `slots` jobs, where there are any: its part of them, or a part of one."""
    gpus = _gpus() if slots > 1 else []
    if not gpus:
        return {}
    mine = gpus[slot::slots] or [gpus[slot % len(gpus)]]
    shares = -(-slots // len(gpus))
    return {'CUDA_VISIBLE_DEVICES': ','.join(mine)} | (
        {'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{0.9 / shares:.2f}'} if shares > 1 else {}
    )


def _gpus() -> list[str]:
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    if visible is not None:
        return [name for name in visible.split(',') if name]
    with suppress(OSError, subprocess.TimeoutExpired):
        listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True, timeout=20)
        return [str(i) for i, _ in enumerate(listed.stdout.splitlines())]
    return []
