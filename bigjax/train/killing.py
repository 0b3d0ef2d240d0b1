"""Runs of `bigjax train` in processes of their own, killed and started again, here or elsewhere."""

import math
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from bigjax.errors import EXIT_DONE, EXIT_USER_ERROR, ConfigError
from bigjax.train import checkpoint, witness
from bigjax.train.writers import METRICS, read_events, read_lines, read_metrics

STALLED_SECONDS = 900
"""A run that has not come to its kill by then is given up."""
UNTOUCHED = {
    'train.log_every': 1, 'train.early_stopping': None, 'eval.every': 0, 'checkpoint.every': 2,
    'checkpoint.best': None, 'sinks': (),
}  # fmt: skip
"""Overrides that leave alone what a step computes."""

Rows = dict[int, dict[str, set[str]]]


class Place(NamedTuple):
    """What a run is started on: the size of every axis of the mesh, and processes to share it."""

    sizes: Mapping[str, int]
    processes: int = 1


class Trace(NamedTuple):
    """losses: (step, loss) as logged. rows: by step, the hashes that were seen of each row of its
    batch, whenever and wherever it was read. saved: the newest checkpoint after each kill. resumed:
    the step that it went on from."""

    losses: list[tuple[int, float]]
    rows: Rows
    saved: list[int]
    resumed: list[int]


class Ended(Exception):
    """A run that was to be killed had ended by itself. unfit: it never began."""

    def __init__(self, text: str, unfit: bool):
        super().__init__(text)
        self.unfit = unfit


def follow(
    flags: Sequence[str],
    places: Sequence[Place],
    kills: Sequence[int],
    last: int,
    folder: Path,
    moments: random.Random,
) -> Trace:
    """A run up to step `last`, started on each of `places` and killed at `kills` in between.

    Raises: Ended; ConfigError where `folder` is there already.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(f'{folder} is there already; choose another --workdir') from None
    run, there = folder / 'run', []
    for index, (where, step) in enumerate(zip(places, (*kills, last), strict=True)):
        there.append(_newest(run))

        def arrived(seen: tuple[int, int] = (step, index + 1), saved: int = there[-1]) -> bool:
            logged = ((row['step'], row['attempt']) for row in _lines(run / METRICS))
            return seen in logged and (seen[0] == last or _newest(run) > saved)

        delay = 0.0 if step == last else moments.uniform(0, 0.3)
        with (folder / f'{index}.log').open('w+') as errors:
            codes = _start(flags, where, folder, step, arrived, delay, errors)
            if not arrived() and codes != [EXIT_DONE]:  # or it was a short one
                errors.seek(0)
                *_, said = ['nothing was said', *filter(None, errors.read().splitlines())]
                code = next((code for code in codes if code is not None), None)
                how = f'exit code {code}' if code is not None else f'no step {step} for so long'
                unfit = code == EXIT_USER_ERROR and not (run / METRICS).exists()
                said = said.removeprefix('bigjax: ')
                raise Ended(said if unfit else f'{how}: {said}', unfit)
    starts = [row for row in read_events(run) if row['event'] == 'start']
    losses = [(row['step'], row['train/loss']) for row in read_metrics(run) if 'train/loss' in row]
    rows: Rows = {}
    for file in folder.glob('*.jsonl'):
        for line in read_lines(file):
            batch = rows.setdefault(line['batch'] + 1, {})
            for row, found in line['rows'].items():
                batch.setdefault(row, set()).add(found)
    resumed = [row.get('step', 0) for row in starts[1:]]
    return Trace([(step, loss) for step, loss in losses if step <= last], rows, there[1:], resumed)


def _start(
    flags: Sequence[str],
    where: Place,
    folder: Path,
    step: int,
    arrived: Callable[[], bool],
    delay: float,
    errors: Any,
) -> list[int | None]:
    """Trains until it has `arrived` at `step`, or ended; then the SIGKILL. Exit codes before."""
    devices = math.prod(where.sizes.values()) // where.processes
    values = {**UNTOUCHED, **{f'mesh.{axis}': size for axis, size in where.sizes.items()}}
    command = [sys.executable, '-m', 'bigjax.cli', 'train', *flags, f'--workdir={folder / "run"}']
    command += [f'--config.{key}={value}' for key, value in values.items()]
    environment = {
        **{name: value for name, value in os.environ.items() if name != 'JAX_NUM_CPU_DEVICES'},
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': os.environ.get('XLA_FLAGS', '')
        + f' --xla_force_host_platform_device_count={devices}',
        # the loop sees the loss of a step when the next one is on its way
        witness.VARIABLE: f'{folder}:{step + 1}',
    }
    port = _free_port()
    running: list[subprocess.Popen] = []
    try:
        for index in range(where.processes):
            named = {'coordinator': f'127.0.0.1:{port}', 'num_processes': where.processes}
            many = [f'--{name}={value}' for name, value in {**named, 'process_id': index}.items()]
            running.append(
                subprocess.Popen(
                    [*command, *(many if where.processes > 1 else ['--num_processes=1'])],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=errors if index == 0 else subprocess.DEVNULL,
                )
            )
        until = time.monotonic() + STALLED_SECONDS
        while time.monotonic() < until and not arrived():
            if any(process.poll() is not None for process in running):
                break
            time.sleep(0.05)
        else:
            time.sleep(delay)
        return [process.poll() for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def _lines(path: Path) -> list[dict[str, Any]]:
    return read_lines(path) if path.is_file() else []


def _newest(run: Path) -> int:
    """The step of the newest checkpoint that is whole; -1 without one."""
    with suppress(FileNotFoundError):
        names = [path.name for path in (run / checkpoint.FOLDER).iterdir()]
        return max((int(name) for name in names if name.isdigit()), default=-1)
    return -1
