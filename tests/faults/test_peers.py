"""Two processes, of which one is stopped or dies."""

import json
import signal
import time
from collections import defaultdict

import pytest

from bigjax.train.writers import read_events
from tests.faults.runs import assert_resumed, numbers
from tests.test_hosts import (
    MESHES,
    alone,
    assert_same,
    ended,
    flags,
    folder,
    has_step,
    launch,
    lines,
    nothing_left_running,
    pair,
    train,
    until,
)

__all__ = ['alone', 'folder', 'nothing_left_running', 'pair']

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_row_04_a_signal_to_one_stops_all_at_the_same_step(folder, pair, number):
    name = f'stopped-by-{number}'
    run = folder / name
    steps = ['--config.checkpoint.every=0', MESHES['fsdp']]
    processes = launch(folder, 2, 2, train(name, *steps), flags, SLEEP='.5')
    until(lambda: has_step(run, 2))
    processes[1].send_signal(number)
    (line,) = lines(ended(processes, 75, 75))
    (saved,) = (run / 'checkpoints').iterdir()
    assert line == f'bigjax: stopped by SIGTERM and saved at step {saved.name}'
    assert 2 <= int(saved.name) < 8
    ended(launch(folder, 2, 2, train(name, *steps), flags), 0, 0)
    assert numbers(run) == numbers(pair)  # bit for bit


@pytest.mark.parametrize('killed', [0, 1])
def test_row_09_a_killed_process_ends_the_other_and_both_resume(folder, pair, killed):
    name = f'lost-{killed}'
    run = folder / name
    processes = launch(folder, 2, 2, train(name, MESHES['fsdp']), flags, SLEEP='.5')
    until(lambda: (run / 'checkpoints' / '4').is_dir())
    started = time.monotonic()
    processes[killed].kill()
    for process in processes:
        process.communicate(timeout=60)
    assert time.monotonic() - started < 30
    assert processes[1 - killed].returncode not in (0, 70, 75, 78)
    ended(launch(folder, 2, 2, train(name, MESHES['fsdp']), flags), 0, 0)
    assert_resumed(run, None, 4)
    assert numbers(run) == numbers(pair)


READS = """
import json, os, sys
import jax
from bigjax import cli
from bigjax.data import batches
whole = batches.train_batch

def train_batch(source, seed, step, *rest):
    class Seen:
        def __len__(self):
            return len(source)

        def __getitem__(self, rows):
            with open(f'reads-{jax.process_count()}-{jax.process_index()}', 'a') as file:
                print(json.dumps([step, len(source), rows.tolist()]), file=file)
            return source[rows]

    return whole(Seen(), seed, step, *rest)

batches.train_batch = train_batch
sys.exit(cli.main(sys.argv[1:]))
"""


def test_row_23_killed_as_two_and_resumed_as_one(folder, alone):
    """The rows that the steps were made of are one epoch, and the beginning of the next."""
    run = folder / 'killed'
    (folder / 'reads.py').write_text(READS)
    command = ['reads.py', *train('killed', MESHES['fsdp'])[2:]]
    processes = launch(folder, 2, 2, command, flags, SLEEP='.3')
    until(lambda: (run / 'checkpoints' / '4').is_dir() and has_step(run, 5))
    for process in processes:
        process.send_signal(signal.SIGKILL)
    ended(processes, -9, -9)
    ended(launch(folder, 1, 4, command), 0)
    starts = [row for row in read_events(run) if row['event'] == 'start']
    assert [(row.get('step'), row['details']['processes']) for row in starts] == [(None, 2), (4, 1)]
    assert_same(run, alone('fsdp'))
    read = defaultdict(list)
    for name, steps in (('2-0', range(4)), ('2-1', range(4)), ('1-0', range(4, 8))):
        for line in (folder / f'reads-{name}').read_text().splitlines():
            step, size, rows = json.loads(line)
            if step in steps:
                read[step] += rows
    assert [len(read[step]) for step in range(8)] == [24] * 8
    stream = [row for step in range(8) for row in read[step]]
    assert size < len(stream)
    whole = size // 24 * 24  # of the batch that spans two epochs, the processes' halves mix
    assert len(set(stream[:whole])) == whole
    assert set(stream[: whole + 24]) == set(range(size))
