"""One job a run folder."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from bigjax import cli
from bigjax.errors import EnvironmentProblem
from bigjax.train import lock
from bigjax.train.loop import train
from tests.faults.runs import command, end, numbers, start, tree

WAITS = """
def wait(*_):
    print('at', file=sys.stderr, flush=True)
    time.sleep(600)

before(Progress, 'update', wait)
"""


@pytest.fixture
def running(tmp_path):
    process = start(tmp_path / 'run', WAITS)
    assert process.stderr.readline() == 'at\n'
    yield process
    process.kill()
    process.communicate()


def test_row_28_a_second_job_is_refused(running, tmp_path, capsys):
    run = tmp_path / 'run'
    before = tree(run)
    assert cli.main(command(run, '--config.eval.every=1')) == 78
    (line,) = capsys.readouterr().err.splitlines()
    assert f'{run} is in use by process {running.pid} on {socket.gethostname()}; stop' in line
    assert tree(run) == before


def test_row_28_the_lock_of_a_killed_job_is_taken_over(running, tmp_path, whole, config):
    run = tmp_path / 'run'
    running.send_signal(signal.SIGKILL)
    running.wait()
    train(config, run)
    assert f'over from process {running.pid} on' in (run / 'log.txt').read_text()
    assert numbers(run) == numbers(whole)
    assert (run / 'lock').read_bytes() == b''


def test_row_28_a_job_that_is_dead_but_not_yet_buried_holds_nothing(running, tmp_path, config):
    running.send_signal(signal.SIGKILL)  # and nobody waits for it
    os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
    with lock.held(tmp_path / 'run') as note:
        assert note is not None


@pytest.mark.parametrize('change', ['host', 'kernel'])
@pytest.mark.parametrize('beats', [True, False])
def test_row_28_a_lock_of_another_host_is_held_while_it_is_touched(
    tmp_path, monkeypatch, change, beats
):
    monkeypatch.setattr(lock, 'STALE_SECONDS', 2.0)
    path = tmp_path / 'lock'
    elsewhere = {**lock._process(os.getpid()), 'host': 'far', 'kernel': ['another']}
    path.write_text(
        json.dumps(elsewhere | ({'host': socket.gethostname()} if change == 'kernel' else {}))
    )
    os.utime(path, (0, 0))  # clocks differ: what its time is does not matter
    ended = threading.Event()
    owner = json.loads(path.read_text())
    monkeypatch.setattr(lock, 'BEAT_SECONDS', 0.3)
    beat = threading.Thread(target=lock._beat, args=(path, owner, ended))
    if beats:
        beat.start()
        with pytest.raises(EnvironmentProblem, match=f'in use by process {os.getpid()} on'):
            lock.held(tmp_path).__enter__()
        ended.set()
        beat.join()
    else:
        with lock.held(tmp_path) as note:
            assert 'now gone' in note
        assert path.read_bytes() == b''


def test_row_28_a_number_that_another_process_has_now_is_no_owner(tmp_path):
    (tmp_path / 'lock').write_text(json.dumps(lock._process(os.getpid()) | {'started': '1'}))
    with lock.held(tmp_path) as note:
        assert note is not None
        with pytest.raises(EnvironmentProblem, match='in use'):
            lock.held(tmp_path).__enter__()
    with lock.held(tmp_path) as note:
        assert note is None


def test_row_28_who_lost_the_lock_ends(tmp_path):
    code = f"""
import pathlib, time
from bigjax.train import lock
lock.BEAT_SECONDS = 0.1
path = pathlib.Path({str(tmp_path)!r})
with lock.held(path):
    (path / 'lock').write_text('{{"pid": 1}}')
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True)
    assert end(process, 1) == f'bigjax: another job took {tmp_path / "lock"} over; this one ends\n'


def test_row_28_of_many_at_once_one_gets_it(tmp_path):
    """A dead job's lock, and four processes that start together."""
    (tmp_path / 'lock').write_text(json.dumps(lock._process(os.getpid()) | {'started': '1'}))
    code = f"""
import pathlib, sys
from bigjax.errors import EnvironmentProblem
from bigjax.train import lock
print('ready', flush=True)
sys.stdin.readline()
try:
    with lock.held(pathlib.Path({str(tmp_path)!r})):
        print('held', flush=True)
        sys.stdin.readline()
except EnvironmentProblem:
    print('refused', flush=True)
"""
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
    many = [subprocess.Popen([sys.executable, '-c', code], **pipes) for _ in range(4)]
    for process in many:
        assert process.stdout.readline() == 'ready\n'
    for process in many:
        process.stdin.write('\n')
        process.stdin.flush()
    said = [process.stdout.readline() for process in many]
    for process in many:
        process.communicate('\n', timeout=60)
    assert sorted(said) == ['held\n', *['refused\n'] * 3]
