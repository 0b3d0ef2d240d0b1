"""Runs that are asked to stop, and go on: as they were, or on other devices."""

import json
import signal
from collections import defaultdict

import pytest

from bigjax.errors import Preempted
from bigjax.train.loop import train
from bigjax.train.writers import read_metrics
from tests.faults.runs import assert_resumed, end, good, numbers, start, stop_at
from tests.train.tiny import tiny_config


@pytest.mark.parametrize(
    'values',
    [
        {'model.dropout': 0.3, 'model.norm': 'batch', 'optimizer.ema': 0.9},
        {'train.accumulation': 2, 'optimizer.name': 'muon', 'mesh.tensor': 2, 'mesh.fsdp': 2},
        {'precision': {'compute': 'float16', 'moments': 'bfloat16', 'growth_steps': 2}},
    ],
    ids=['batch-norm-ema', 'accumulation-sharded', 'float16'],
)
def test_row_01_stopped_and_started_again_is_bit_identical(tmp_path, monkeypatch, values):
    config = tiny_config(**values)
    train(config, tmp_path / 'whole')
    stop_at(monkeypatch, 4)
    with pytest.raises(Preempted, match='SIGTERM and saved at step 5'):
        train(config, tmp_path / 'halves')
    train(config, tmp_path / 'halves')
    assert numbers(tmp_path / 'halves') == numbers(tmp_path / 'whole')
    trained = [row['step'] for row in read_metrics(tmp_path / 'halves') if 'train/loss' in row]
    assert trained == [1, 2, 3, 4, 5, 6]
    assert_resumed(tmp_path / 'halves', None, 5)


IN_STEP_4 = """
def wait(self, step, metrics=None):
    if step == 3 and metrics is None:
        print('at', file=sys.stderr, flush=True)
        time.sleep(1)

before(Progress, 'update', wait)
"""


def test_row_02_sigterm_in_a_step(tmp_path, whole, config):
    run = tmp_path / 'run'
    process = start(run, IN_STEP_4, '--config.checkpoint.every=0')
    while process.stderr.readline() != 'at\n':
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert 'bigjax: stopped by SIGTERM and saved at step 4\n' in end(process, 75)
    assert good(run, config) == 4
    end(start(run), 0)
    assert_resumed(run, None, 4)
    assert numbers(run) == numbers(whole)


SEEN = """
import hashlib, json
from bigjax.data import batches
whole = batches.train_batch

def train_batch(source, seed, step, *rest):
    batch = whole(source, seed, step, *rest)
    values = b''.join(batch[name].tobytes() for name in ('inputs', 'targets'))
    with open('{path}', 'a') as file:
        print(json.dumps([step, hashlib.sha256(values).hexdigest()]), file=file)
    return batch

batches.train_batch = train_batch

def stop(self, step, metrics=None):
    if step == {last} - 1 and metrics is None:
        send(signal.SIGTERM)

before(Progress, 'update', stop)
"""


@pytest.mark.slow
@pytest.mark.parametrize('axis', ['data', 'fsdp', 'tensor'])
def test_row_22_8_devices_then_4_then_1_then_8(tmp_path, axis):
    run = tmp_path / 'run'
    flag = '--config.model.dropout=0.1'
    for devices, last, code in ((8, 2, 75), (4, 3, 75), (1, 5, 75), (8, 99, 0)):
        patch = SEEN.replace('{path}', f'{tmp_path}/seen').replace('{last}', str(last))
        wrapper = ('env', f'XLA_FLAGS=--xla_force_host_platform_device_count={devices}')
        mesh = f'--config.mesh.{axis}={devices}'
        end(start(run, patch, flag, mesh, wrapper=wrapper), code)
        assert len(json.loads((run / 'env.json').read_text())['devices']) == devices
    assert_resumed(run, None, 2, 3, 5)
    patch = SEEN.replace('{path}', f'{tmp_path}/expected').replace('{last}', '99')
    end(start(tmp_path / 'still', patch, flag), 0)
    moved, still = numbers(run), numbers(tmp_path / 'still')
    assert [row.keys() for row in moved] == [row.keys() for row in still]
    for one, other in zip(moved, still, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    expected = samples(tmp_path / 'expected')
    assert list(map(len, expected.values())) == [1] * 6
    assert samples(tmp_path / 'seen') == expected


def samples(path):
    """By step, the digests of the batches that were made for it."""
    found = defaultdict(set)
    for line in path.read_text().splitlines():
        step, digest = json.loads(line)
        found[step].add(digest)
    return dict(sorted(found.items()))
