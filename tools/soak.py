"""Kills a run at random moments, again and again, and compares its numbers with an undisturbed one.

    python tools/soak.py --workdir=DIR [--kills=200] [--seed=0] [--config.section.field=value ...]

The run is `bigjax train` on digits with dropout, batch norm and averaged weights, and whatever
the further flags set. Each attempt is killed with SIGKILL and started again. A run that comes to
an end is compared, and another begun, until so many kills are done and the last run has ended in
peace: train, val and test in metrics.jsonl must be those of the undisturbed run, bit for bit, no
line missing or twice. Writes DIR/soak.log (a line a kill) and DIR/summary.txt; exits 1 on a
difference.
"""

import argparse
import itertools
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from bigjax.train.writers import Row, read_events, read_metrics

ROOT = Path(__file__).parents[1]
SPLITS = ('train/', 'val/', 'test/')

Numbers = list[tuple[int, dict[str, str]]]

RUN = [
    f'--config={ROOT}/configs/digits_cnn.py', '--config.train.epochs=none',
    '--config.train.steps=300', '--config.train.log_every=1', '--config.eval.every=20',
    '--config.checkpoint.every=5', '--config.checkpoint.keep=2', '--config.model.dropout=0.1',
    '--config.model.norm=batch', '--config.optimizer.ema=0.99',
]  # fmt: skip

STUCK_SECONDS = 600


class Moment(NamedTuple):
    """When to kill: a part of the time that starting takes after the launch, or, once there is such
    an event and so many more lines of metrics (or all), so many seconds later."""

    part: float = 0.0
    event: str | None = None
    lines: int = 0
    seconds: float = 0.0


class Kill(NamedTuple):
    """What was seen of one attempt. resumed: None if it did not come so far.

    lost: steps in metrics.jsonl that it had to do again, after the kills before.
    """

    seconds: float
    phase: str
    resumed: int | None
    lost: int
    rejected: int
    took_over: int


def main() -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', type=Path, required=True)
    parser.add_argument('--kills', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    arguments, flags = parser.parse_known_args()
    folder = arguments.workdir.absolute()
    folder.mkdir(parents=True)
    began = time.monotonic()
    starting = undisturbed(folder / 'whole', flags)
    expected = numbers(folder / 'whole')
    kills: list[Kill] = []
    draws = moments(arguments.seed)
    for number in itertools.count(1):
        run = folder / f'run-{number}'
        while len(kills) < arguments.kills:
            kill = killed(run, flags, next(draws), expected, starting)
            if kill is None:
                break
            kills.append(kill)
            with (folder / 'soak.log').open('a') as log:
                print(line(number, len(kills), kill), file=log)
        else:
            undisturbed(run, flags)
        differs = difference(expected, numbers(run))
        if differs or len(kills) == arguments.kills:
            break
    text = summary(arguments.seed, expected, kills, number, time.monotonic() - began)
    text += f'verdict: {run.name} differs: {differs}' if differs else 'verdict: bit-identical'
    (folder / 'summary.txt').write_text(text + '\n')
    print(text)
    return bool(differs)


def moments(seed: int) -> Iterator[Moment]:
    """A quarter while the process starts, perhaps with two more in haste, a tenth in compiling."""
    rng = random.Random(seed)
    while True:
        kind = rng.random()
        if kind < 0.25:
            yield Moment(part=rng.random())
            for _ in range(rng.choice((0, 0, 2))):
                yield Moment(part=rng.random() / 4)
        elif kind < 0.35:
            yield Moment(event='start', seconds=rng.uniform(0, 2))
        else:
            yield Moment(event='compile', lines=rng.randrange(60), seconds=rng.random())


def launch(run: Path, flags: list[str]) -> subprocess.Popen:
    """`bigjax train`; what it prints goes into a file beside the run."""
    with run.with_suffix('.out').open('a') as out:
        return subprocess.Popen(
            [sys.executable, '-m', 'bigjax.cli', 'train', f'--workdir={run}', *RUN, *flags],
            cwd=ROOT,
            stdout=out,
            stderr=out,
        )


def undisturbed(run: Path, flags: list[str]) -> float:
    """To the end; how many seconds starting took. Raises: SystemExit if it fails."""
    began = time.time()
    code = launch(run, flags).wait()
    if code:
        sys.exit(f'soak: an attempt ended with {code}; see {run.with_suffix(".out")}')
    return started(read_events(run))[-1]['time'] - began


def killed(
    run: Path, flags: list[str], moment: Moment, expected: Numbers, starting: float
) -> Kill | None:
    """One attempt, killed at `moment`; None if it ended before. Raises: SystemExit if it failed."""
    reached, past, heard = last_step(run), len(read_events(run)), len(said(run))
    began = time.monotonic()
    process = launch(run, flags)

    def until(condition: Callable[[], bool]) -> None:
        while process.poll() is None and not condition():
            if time.monotonic() - began > STUCK_SECONDS:
                process.kill()
                sys.exit(f'soak: stuck for {STUCK_SECONDS} s; see {run.with_suffix(".out")}')
            time.sleep(0.02)

    if moment.event:
        until(lambda: any(row['event'] == moment.event for row in read_events(run)[past:]))
        here = len(numbers(run))
        enough = min(here + moment.lines, len(expected) - 1)
        until(lambda: len(numbers(run)) >= enough)
    with suppress(subprocess.TimeoutExpired):
        process.wait(moment.part * starting + moment.seconds)
    seconds = time.monotonic() - began
    process.kill()
    code = process.wait()
    if code not in (0, -signal.SIGKILL):
        sys.exit(f'soak: an attempt ended with {code}; see {run.with_suffix(".out")}')
    if code == 0:
        return None
    events, news = read_events(run)[past:], said(run)[heard:]
    resumed = started(events)[0].get('step', 0) if started(events) else None
    return Kill(
        seconds,
        phase(run, process.pid, events, expected),
        resumed,
        0 if resumed is None else reached - resumed,
        news.count(' is not used: '),
        news.count(' over from process '),
    )


def phase(run: Path, pid: int, events: list[Row], expected: Numbers) -> str:
    """What the process did when it was killed, by what it left."""
    happened = {row['event'] for row in events}
    last = expected[-1][0]
    if 'done' in happened:
        return 'exit'
    if not started(events):
        lock = run / 'lock'
        locked = lock.is_file() and f'"pid": {pid},' in lock.read_text()
        return 'build and restore' if locked else 'import'
    if 'compile' not in happened:
        return 'end' if started(events)[0].get('step') == last else 'compile'
    measured = numbers(run)
    step = last_step(run)
    if measured and len(measured) < len(expected) and step == expected[len(measured)][0] != last:
        return 'evaluation'
    if any((run / 'checkpoints').glob('*.partial*')):
        return 'save'
    return 'end' if step == last else 'step'


def started(events: list[Row]) -> list[Row]:
    """The lines that say where training begins."""
    return [row for row in events if row['event'] == 'start']


def said(run: Path) -> str:
    """The log so far."""
    path = run / 'log.txt'
    return path.read_text() if path.is_file() else ''


def numbers(run: Path) -> Numbers:
    """All that was measured, in the order it was written: steps, and floats in hexadecimal."""
    if not (run / 'metrics.jsonl').is_file():
        return []
    return [
        (row['step'], {k: v.hex() for k, v in row.items() if k.startswith(SPLITS)})
        for row in read_metrics(run)
    ]


def last_step(run: Path) -> int:
    """Of those whose numbers are there."""
    return max((step for step, _ in numbers(run)), default=0)


def difference(expected: Numbers, found: Numbers) -> str | None:
    """The first line that is not as it was in the undisturbed run."""
    for wanted, row in itertools.zip_longest(expected, found):
        if wanted != row:
            return f'{row}, expected {wanted}'
    return None


def line(number: int, count: int, kill: Kill) -> str:
    """Of the log."""
    resumed = 'not started' if kill.resumed is None else f'from step {kill.resumed}'
    return (
        f'kill {count:3} of run {number}  {kill.seconds:5.2f} s  {kill.phase:17}  {resumed:13}  '
        f'{kill.lost} steps again, {kill.rejected} checkpoints rejected'
        + (', took the lock over' if kill.took_over else '')
    )


def summary(seed: int, expected: Numbers, kills: list[Kill], runs: int, seconds: float) -> str:
    """All but the verdict."""
    phases = Counter(kill.phase for kill in kills)
    return (
        f'{len(kills)} kills (seed {seed}) of {runs} runs in turn, in {seconds / 60:.0f} min\n'
        f'each of {expected[-1][0]} steps: {sum(len(row) for _, row in expected)} numbers\n'
        f'killed in: {", ".join(f"{name} {count}" for name, count in phases.most_common())}\n'
        f'resumed: {sum(bool(kill.resumed) for kill in kills)} times at a step past 0\n'
        f'steps done again: {sum(kill.lost for kill in kills)}, '
        f'at most {max(kill.lost for kill in kills)} at once\n'
        f'checkpoints rejected: {sum(kill.rejected for kill in kills)}\n'
        f'locks of the dead taken over: {sum(kill.took_over for kill in kills)}\n'
    )


if __name__ == '__main__':
    sys.exit(main())
