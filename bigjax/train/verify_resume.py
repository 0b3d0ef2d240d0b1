"""Whether a run that is killed and resumed is the run that nothing happened to.

Each trial is `bigjax train` in a folder of its own, on virtual CPU devices: the first 2 N steps of
the config as it stands, schedules included, without evaluation. Twice it gets a SIGKILL, after a
step that a seed chooses, the first before N, and at any moment after a checkpoint; then it is
started again:

    same mesh               losses must be the undisturbed run's bit for bit
    others, and processes   there, then on the config's own mesh, then there again: losses within a
                            tolerance, since sums are rounded in another order

On every one the same rows must make the same batch, and each step must be logged once.
"""

import math
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from bigjax.config import Config
from bigjax.errors import EXIT_DONE, EXIT_FAILED, EXIT_USER_ERROR, ConfigError, nearest
from bigjax.sharding.mesh import AXES, describe_mesh, mesh_sizes
from bigjax.train import checkpoint, witness
from bigjax.train.writers import METRICS, read_events, read_lines, read_metrics

MESHES = ('data=1', 'fsdp=4', 'processes=2,fsdp=2,tensor=2')
DEVICES = 4
TOLERANCES = {'float32': 1e-5, 'bfloat16': 1e-2, 'float16': 1e-2}
"""Between meshes, by compute dtype."""
STALLED_SECONDS = 900
"""A run that has not come to its kill by then is given up."""
UNTOUCHED = {
    'train.log_every': 1, 'train.early_stopping': None, 'eval.every': 0, 'checkpoint.every': 2,
    'checkpoint.best': None, 'sinks': (),
}  # fmt: skip
"""Overrides that leave alone what a step computes."""
ROW = '{:24}{:>10}{:>10}{:>14}{:>9}{:>10}{:>9}  {}'
HEAD = ('mesh', 'processes', 'killed at', 'resumed from', 'batches', 'losses', 'seconds', '')

Rows = dict[int, dict[str, set[str]]]


class Place(NamedTuple):
    """What a run is started on: the size of every axis of the mesh, and processes to share it."""

    sizes: Mapping[str, int]
    processes: int = 1


class Trace(NamedTuple):
    """losses: (step, loss) as logged. rows: by step, the hashes that were seen of each row of its
    batch, whenever and wherever it was read. resumed: the steps that it went on from."""

    losses: list[tuple[int, float]]
    rows: Rows
    resumed: list[int | None]


class Ended(Exception):
    """A run that was to be killed had ended by itself. unfit: it never began."""

    def __init__(self, text: str, unfit: bool):
        super().__init__(text)
        self.unfit = unfit


def verify(
    config: Config,
    flags: Sequence[str],
    steps: int,
    meshes: Sequence[str],
    devices: int,
    tolerance: float | None,
    workdir: Path,
    console: Console,
) -> int:
    """Prints a row a trial: 0, or 1 if one is not the run that nothing happened to.

    flags: with which `bigjax train` reads `config`. steps: N. meshes: as `place` reads them.
    devices: of the config's own mesh. workdir: a folder without earlier trials.
    Raises: ConfigError where the config does not run undisturbed either.
    """
    if steps < 3:
        raise ConfigError(f'--steps: expected at least 3, got {steps}')
    own = Place(mesh_sizes(config.mesh, devices))
    others = [place(text, own) for text in meshes]
    tolerance = TOLERANCES[config.precision.compute] if tolerance is None else tolerance
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    say(
        f'{2 * steps} steps of {config.train.batch_size} rows: losses bit for bit on the same mesh,'
        f' within {tolerance:g} on others ({config.precision.compute})'
    )
    say(ROW.format(*HEAD))
    moments = random.Random(config.seed)
    expected, failed = None, []
    trials = [
        ([own], 0.0),
        ([own] * 3, 0.0),
        *(([other, own, other], tolerance) for other in others),
    ]
    for number, (places, allowed) in enumerate(trials):
        kills = [moments.randint(2, steps - 1), moments.randint(steps + 1, 2 * steps - 2)]
        kills = kills[: len(places) - 1]
        name, started = describe_mesh(places[0].sizes), time.monotonic()
        numbers: list[Any] = ['', '', '']
        problem: str | None
        try:
            found = follow(flags, places, kills, 2 * steps, workdir / str(number), moments)
        except Ended as error:
            if expected is None:
                raise ConfigError(f'the undisturbed run ended: {error}') from None
            if error.unfit:
                say(f'{name}: skipped: {error}', style='yellow')
                continue
            problem = str(error)
        else:
            if expected is None:
                expected = found
                if len(found.losses) < 2 * steps:
                    raise ConfigError(
                        f'--steps={steps}: expected a config of {2 * steps} steps or more, got '
                        f'{len(found.losses)}; lower --steps, or raise its train.steps'
                    )
            problem, same, worst = compare(expected, found, allowed)
            resumed = ', '.join(map(str, found.resumed))
            numbers = [resumed, f'{same}/{2 * steps}', f'{worst:.1e}' if worst else 'equal']
        told = ', '.join(map(str, kills)), *numbers, f'{time.monotonic() - started:.0f}'
        verdict = problem or ('holds' if kills else 'undisturbed')
        say(ROW.format(name, places[0].processes, *told, verdict), style='red' if problem else None)
        if problem:
            failed.append(f'{name}, {verdict}')
    if failed:
        say(
            f'{len(failed)} of the trials differ from the undisturbed run: {failed[0]}', style='red'
        )
    else:
        say('killed and resumed, it is the run that nothing happened to')
    return EXIT_FAILED if failed else EXIT_DONE


def place(text: str, own: Place) -> Place:
    """`fsdp=2,tensor=2`, other axes being 1; with `processes=2`, which alone keeps the mesh `own`.

    Raises: ConfigError.
    """
    asked: dict[str, int] = {}
    for item in text.split(','):
        name, _, size = item.partition('=')
        if name not in (*AXES, 'processes') or not size.isdigit() or int(size) < 1:
            hint = nearest(name, (*AXES, 'processes'))
            raise ConfigError(f'--meshes: expected AXIS=SIZE,..., got {text!r}; {hint}')
        asked[name] = int(size)
    processes = asked.pop('processes', 1)
    sizes = {axis: asked.get(axis, 1) for axis in AXES} if asked else own.sizes
    if math.prod(sizes.values()) % processes:
        raise ConfigError(f'--meshes: {text}: its devices do not divide over {processes} processes')
    return Place(sizes, processes)


def compare(expected: Trace, found: Trace, tolerance: float) -> tuple[str | None, int, float]:
    """What is wrong first, if anything; how many batches are the same; and by how much, relative
    to it, the loss of a step differs at most."""
    wanted, logged = dict(expected.losses), [step for step, _ in found.losses]
    off = {
        step: abs(loss - wanted[step]) / abs(wanted[step] or 1.0) if loss == loss else math.inf
        for step, loss in found.losses
        if step in wanted
    }
    odd = [step for step in wanted if found.rows.get(step) != expected.rows[step]]
    worst = max(off.values(), default=math.inf)
    problem = None
    if logged != list(wanted):
        problem = f'logged are steps {", ".join(map(str, logged))}'
    elif odd:
        rows, others = expected.rows[odd[0]], found.rows.get(odd[0], {})
        differ = [row for row in {**rows, **others} if rows.get(row) != others.get(row)]
        problem = f'step {odd[0]} has another batch: row {differ[0]}, {len(differ)} in all'
    elif worst > tolerance:
        step = next(step for step, value in off.items() if value > tolerance)
        loss = dict(found.losses)[step]
        problem = f'step {step} has another loss: {wanted[step]!r} undisturbed, here {loss!r}'
    elif None in found.resumed:
        problem = 'resumed from nothing, though there was a checkpoint'
    return problem, len(wanted) - len(odd), worst


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
    run = folder / 'run'
    for index, (where, step) in enumerate(zip(places, (*kills, last), strict=True)):
        saved = _newest(run)

        def arrived(seen: tuple[int, int] = (step, index + 1), saved: int = saved) -> bool:
            there = seen in ((row['step'], row['attempt']) for row in _lines(run / METRICS))
            return there and (seen[0] == last or _newest(run) > saved)

        delay = 0.0 if step == last else moments.uniform(0, 0.3)
        with (folder / f'{index}.log').open('w+') as errors:
            codes = _start(flags, where, folder, step, arrived, delay, errors)
            if not arrived():
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
    resumed = [row.get('step') for row in starts[1:]]
    return Trace([(step, loss) for step, loss in losses if step <= last], rows, resumed)


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
