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
import random
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from bigjax.config import Config
from bigjax.errors import EXIT_DONE, EXIT_FAILED, ConfigError, nearest
from bigjax.sharding.mesh import AXES, describe_mesh, mesh_sizes
from bigjax.train.killing import Ended, Place, Trace, follow

MESHES = ('data=1', 'processes=2,fsdp=2,tensor=2')
TOLERANCES = {'float32': 1e-5, 'bfloat16': 1e-2, 'float16': 1e-2}
"""Between meshes, by compute dtype."""
ROW = '{:24}{:>10}{:>10}{:>14}{:>9}{:>10}{:>9}  {}'
HEAD = ('mesh', 'processes', 'killed at', 'resumed from', 'batches', 'losses', 'seconds', '')


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
                if (length := len(found.losses)) < 2 * steps:
                    raise ConfigError(
                        f'--steps={steps}: expected a config of {2 * steps} steps or more, got '
                        f'{length}; use --steps={length // 2}, or a longer config.train'
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
    elif found.resumed != found.saved:
        was, went = (', '.join(map(str, steps)) for steps in (found.saved, found.resumed))
        problem = f'resumed from step {went}, but the newest checkpoints were of {was}'
    return problem, len(wanted) - len(odd), worst
