"""Processes that are killed in the middle of a save, and started again."""

import signal

import pytest

from bigjax.train.loop import train
from tests.faults.runs import assert_resumed, end, good, numbers, start, there

AT_STEP_4 = 'lambda *args: send(signal.SIGKILL) if 4 in args else None'


def assert_mended(run, whole, config, step):
    """It goes on from `step` as if nothing had happened."""
    assert good(run, config) == step
    train(config, run)
    assert_resumed(run, None, step)
    assert numbers(run) == numbers(whole)
    assert {path.name for path in (run / 'checkpoints').iterdir()} == {'2', '4', '6'}


def test_row_06_killed_in_a_step(tmp_path, whole, config):
    patch = """
after(checkpoint, 'save', lambda checkpoints, *_: checkpoints.wait())
before(Progress, 'update', lambda self, step, metrics=None: step == 5 and send(signal.SIGKILL))
"""
    end(start(tmp_path / 'run', patch), -signal.SIGKILL)
    assert_mended(tmp_path / 'run', whole, config, 4)


def test_row_07_killed_while_a_save_is_on_its_way(tmp_path, whole, config):
    run = tmp_path / 'run'
    patch = """
def kill(checkpoints, step, *_):
    while step == 4:
        if any(checkpoints.directory.glob('4*')):
            send(signal.SIGKILL)
after(checkpoint, 'save', kill)
"""
    end(start(run, patch), -signal.SIGKILL)
    (left,) = (run / 'checkpoints').glob('4*')
    assert left.name.startswith('4.partial')
    assert_mended(run, whole, config, 2)


def test_row_08_killed_between_commit_and_manifest(tmp_path, whole, config):
    run = tmp_path / 'run'
    end(start(run, f"before(manifest, 'write', {AT_STEP_4})"), -signal.SIGKILL)
    assert (run / 'checkpoints' / '4.partial' / 'commit_success.txt').is_file()
    assert_mended(run, whole, config, 2)


def test_row_08_killed_in_the_very_first_save(tmp_path, whole, config):
    """There is nothing good, and nothing bad either: it starts at step 0."""
    run = tmp_path / 'run'
    end(start(run, "before(manifest, 'write', lambda *_: send(signal.SIGKILL))"), -signal.SIGKILL)
    assert_mended(run, whole, config, None)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_row_05_a_second_signal_in_a_save(tmp_path, whole, config, number):
    """SIGTERM ends it there and then; after Ctrl-C, Python may wait for the save to end."""
    patch = f"""
def first(self, step, metrics=None):
    if step == 2 and metrics is None:
        send({number:d})

def second(folder, step, metrics):
    if step == 3:
        send({number:d})
        time.sleep(2)

before(Progress, 'update', first)
before(manifest, 'write', second)
"""
    run = tmp_path / 'run'
    end(start(run, patch), -number)
    step = good(run, config)
    assert step in ((2,) if number == signal.SIGTERM else (2, 3))
    assert there(run, config)[-1] == step
    train(config, run)
    assert_resumed(run, None, step)
    assert numbers(run) == numbers(whole)
