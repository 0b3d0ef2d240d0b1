"""tpu_setup.sh babysit: what it does about each way in which a run can go."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.cluster.fakes import Cloud, command, lives, vm_tools
from tests.cluster.test_tpu_setup import JOB, interrupted

ATTEMPT = ['install', 'smoke', 'start']


def babysit(tmp_path, *flags, **script):
    """The finished process, and what was done: create, the worker's verbs, delete."""
    cloud = Cloud(tmp_path, **({'lives': [['ACTIVE']] * 9} | script))
    said = cloud.run('babysit', *flags, *JOB)
    done = [step for step in cloud.steps() if step in ('create', 'delete', *ATTEMPT)]
    return said, done


def test_a_run_that_ends_well_is_run_once_and_its_tpu_deleted(tmp_path):
    states = ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']
    said, done = babysit(tmp_path, lives=[states], jobs=['running', 'running', 'exited 0'])
    assert said.returncode == 0
    assert done == ['create', *ATTEMPT, 'delete']


@pytest.mark.parametrize('code', [70, 78])
def test_what_no_retry_mends_stops_it(tmp_path, code):
    said, done = babysit(tmp_path, jobs=['running', f'running,exited {code}'])
    assert said.returncode == code
    assert done == ['create', *ATTEMPT, 'delete']


def test_preempted_and_saved_is_run_again(tmp_path):
    # One process saved and left, the other lost its peer: that counts as saved.
    cloud = Cloud(tmp_path, lives=[['ACTIVE']], jobs=['exited 134,exited 75', 'exited 0'])
    assert cloud.run('babysit', *JOB).returncode == 0
    assert [step for step in cloud.steps() if step in ATTEMPT] == ATTEMPT * 2
    # The same code each time, whatever has been edited meanwhile.
    sent = [call[2] for call in cloud.calls() if call[1] == 'scp']
    assert len(sent) == 2
    assert len({*sent}) == 1


@pytest.mark.parametrize('job', ['exited 1', 'exited 0,exited 139', 'none', 'running,exited 1'])
def test_a_crash_is_retried_a_bounded_number_of_times(tmp_path, job):
    said, done = babysit(tmp_path, '--retries=1', jobs=[job])
    assert said.returncode == 1
    assert '2 crashes' in said.stderr
    assert done == ['create', *ATTEMPT * 2, 'delete']


def test_workers_that_end_one_after_another_are_waited_for(tmp_path):
    said, done = babysit(tmp_path, jobs=['running,exited 0'] * 7 + ['exited 0,exited 0'])
    assert said.returncode == 0
    assert done.count('start') == 1


@pytest.mark.parametrize('lost', ['SUSPENDED', 'FAILED'])
def test_a_tpu_lost_while_running_is_deleted_and_made_again(tmp_path, lost):
    lives = [['ACTIVE', 'ACTIVE', lost], ['ACTIVE']]  # asked once before the job, then beside it
    said, done = babysit(tmp_path, lives=lives, jobs=['running', 'exited 0'])
    assert said.returncode == 0, said.stderr
    assert done == ['create', *ATTEMPT, 'delete', 'create', *ATTEMPT, 'delete']


def test_a_vm_that_is_gone_though_its_request_is_active(tmp_path):
    said, done = babysit(
        tmp_path, nodes=['READY', 'READY', 'PREEMPTED', 'READY'], jobs=['running', 'exited 0']
    )
    assert said.returncode == 0, said.stderr
    assert done == ['create', *ATTEMPT, 'delete', 'create', *ATTEMPT, 'delete']


def test_leftovers_are_deleted_before_the_start(tmp_path):
    said, done = babysit(tmp_path, now=['SUSPENDED'], jobs=['exited 0'])
    assert said.returncode == 0
    assert done == ['delete', 'create', *ATTEMPT, 'delete']


@pytest.mark.parametrize('life', [['QUOTA'], ['FAILED'], ['PROVISIONING', 'SUSPENDED']])
def test_a_tpu_that_never_comes_is_asked_for_a_bounded_number_of_times(tmp_path, life):
    cloud = Cloud(tmp_path, lives=[life] * 9)
    # however long it stood in the queue
    said = cloud.run('babysit', '--retries=1', *JOB, TPU_HEALTHY_SECONDS='0')
    assert said.returncode == 1
    assert '2 losses in a row' in said.stderr
    assert cloud.steps().count('create') == 2
    assert 'ssh' not in cloud.steps()
    assert cloud.steps()[-1] == 'delete'


def test_saved_again_and_again_without_progress_is_bounded(tmp_path):
    said, done = babysit(tmp_path, '--retries=1', jobs=['exited 75'])
    assert said.returncode == 1
    assert done.count('start') == 2


def test_losses_far_apart_do_not_add_up(tmp_path):
    cloud = Cloud(tmp_path, lives=[['ACTIVE']], jobs=['exited 75'] * 2 + ['exited 0'])
    said = cloud.run('babysit', '--retries=1', *JOB, TPU_HEALTHY_SECONDS='0')
    assert said.returncode == 0
    assert cloud.steps().count('start') == 3


@pytest.mark.parametrize('step', ['mkdir', 'install', 'smoke'])
def test_ssh_that_fails_on_one_worker_is_tried_again_on_the_same_tpu(tmp_path, step):
    said, done = babysit(tmp_path, ssh={step: 2}, jobs=['exited 0'])
    assert said.returncode == 0, said.stderr
    assert (done.count('create'), done.count('start')) == (1, 1)


def test_ssh_that_keeps_failing_costs_the_tpu(tmp_path):
    said, done = babysit(tmp_path, '--retries=1', ssh={'install': 2}, jobs=['exited 0'])
    assert said.returncode == 0, said.stderr
    assert done == ['create', *['install'] * 2, 'delete', 'create', *ATTEMPT, 'delete']


def test_a_worker_that_is_mute_for_a_while_is_not_lost(tmp_path):
    said, done = babysit(tmp_path, jobs=['running', 'FAIL', 'FAIL', 'running', 'exited 0'])
    assert said.returncode == 0
    assert done == ['create', *ATTEMPT, 'delete']


def test_a_running_job_is_watched_not_started_again(tmp_path):
    # not even when Google is silent at first
    jobs = ['running', 'running', 'exited 0']
    said, done = babysit(tmp_path, now=['ACTIVE'], down=2, jobs=jobs)
    assert said.returncode == 0
    assert done == ['delete']


def test_keep(tmp_path):
    said, done = babysit(tmp_path, '--keep', jobs=['exited 0'])
    assert said.returncode == 0
    assert done == ['create', *ATTEMPT]


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(tmp_path, number):
    cloud = Cloud(tmp_path, lives=[['ACTIVE']], jobs=['running'])
    code = interrupted(cloud, 'babysit', *JOB, after='status', number=number)
    assert code == 128 + number
    assert cloud.steps()[-1] == 'delete'
    assert list((tmp_path / 'tmp').iterdir()) == []


def test_a_signal_ends_what_is_going_on_over_ssh(tmp_path):
    cloud = Cloud(tmp_path, lives=[['ACTIVE']], hang='install')
    arguments = ('babysit', '--slices=2', *JOB)
    code = interrupted(cloud, *arguments, after='install', number=signal.SIGTERM, alone=True)
    assert code == 143
    assert cloud.steps()[-1] == 'delete'
    for line in (tmp_path / 'hanging').read_text().splitlines():
        assert not lives(int(line))


@pytest.mark.slow
def test_a_real_run_is_preempted_and_goes_on(tmp_path):
    cloud = Cloud(tmp_path, lives=[['PROVISIONING', 'ACTIVE']], vms=1)
    vm_tools(tmp_path / 'vm_bin')
    home, run = tmp_path / 'vms' / 'lm-0', tmp_path / 'bucket' / 'run'
    home.mkdir(parents=True)
    (home / 'devices').write_text('8')
    train = ['train', '--config=configs/digits_cnn.py', f'--workdir={run}']
    job = ['/usr/bin/env', 'JAX_PLATFORMS=cpu', 'PYTHONPATH=.', sys.executable, '-m', 'bigjax.cli']
    arguments = command('babysit', '--', *job, *train, '--config.train.epochs=4')
    with subprocess.Popen(arguments, env=cloud.environment(TPU_POLL_SECONDS='0.5')) as process:
        metrics = run / 'metrics.jsonl'
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(int((home / '.bigjax' / 'pid').read_text().split()[0]), signal.SIGTERM)
        assert process.wait(timeout=240) == 0
    log = (home / '.bigjax' / 'log').read_text()
    assert log.index('saved at step') < log.index('exit code 75') < log.index('resuming from step')
    assert log.rstrip().endswith('exit code 0')
    assert cloud.steps()[-1] == 'delete'
