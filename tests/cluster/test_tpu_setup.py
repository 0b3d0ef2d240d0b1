"""tpu_setup.sh, verb by verb, against a Google Cloud of files."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from tests.cluster.fakes import ROOT, Cloud, asked, command, vm_tools

VERBS = ['create', 'wait', 'sync', 'setup', 'run', 'logs', 'status', 'babysit', 'delete']
JOB = ('--', 'bigjax', 'train', '--config=configs/digits_cnn.py')
STRANGE = ['a "b" $c', "it's", '', '~', '{}', '--x=*', 'back\\slash', 'two\nlines', 'é; rm -rf /']


def words(verb: str) -> tuple[str, ...]:
    """What a verb needs besides its name."""
    return JOB if verb in ('run', 'babysit') else ()


# The command line


def test_help_names_every_verb(tmp_path):
    cloud = Cloud(tmp_path)
    said = subprocess.run(
        ['bash', str(ROOT / 'tpu_setup.sh'), '--help'], capture_output=True, text=True
    )
    assert said.returncode == 0
    assert all(re.search(rf'^  {verb} ', said.stdout, re.MULTILINE) for verb in VERBS)
    for verb in VERBS:
        assert cloud.run(verb, '--help').stdout == said.stdout


@pytest.mark.parametrize(
    ('arguments', 'answer'),
    [
        (['crate'], "unknown verb 'crate'"),
        (['create', '--nmae=x'], "unknown option '--nmae=x'"),
        (['create', '--name=Big'], "got 'Big'"),
        (['create', '--slices=0'], "--slices: expected a number from 1 on, got '0'"),
        (['create', '--type=v5e'], "got 'v5e'"),
        (['create', '--type=v9-8'], "got 'v9-8'"),
        (['create', '--type=v5p-3'], "got 'v5p-3'"),
        (['create', '--type=tpu7x-8'], 'kubernetes_tpu.yaml'),
        (['create', '--bucket=gs://b/runs'], "got 'b/runs'"),
        (['run'], 'what to run is missing'),
        (['babysit', '--'], 'what to run is missing'),
        (['setup', '--env=ABSENT'], "got 'ABSENT'"),
        (['setup', '--env=a-b'], "got 'a-b'"),
    ],
)
def test_mistakes_are_one_line_and_call_nothing(tmp_path, arguments, answer):
    cloud = Cloud(tmp_path)
    said = cloud.run(*arguments)
    assert said.returncode == 78
    assert answer in said.stderr
    assert len(said.stderr.splitlines()) == 1
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ('kind', 'accelerator', 'runtime', 'devices'),
    [
        ('v2-8', 'v2-8', 'tpu-ubuntu2204-base', 8),
        ('v4-16', 'v4-16', 'tpu-ubuntu2204-base', 8),
        ('v5e-16', 'v5litepod-16', 'v2-alpha-tpuv5-lite', 16),
        ('v5litepod-1', 'v5litepod-1', 'v2-alpha-tpuv5-lite', 1),
        ('v5p-32', 'v5p-32', 'v2-alpha-tpuv5', 16),
        ('v6e-256', 'v6e-256', 'v2-alpha-tpuv6e', 256),
    ],
)
def test_each_chip_gets_its_image_and_its_count_of_devices(
    tmp_path, kind, accelerator, runtime, devices
):
    cloud = Cloud(tmp_path, lives=[['ACTIVE']], vms=0)
    assert cloud.run('create', f'--type={kind}').returncode == 0
    assert f'--accelerator-type={accelerator}' in cloud.calls()[-1]
    assert f'--runtime-version={runtime}' in cloud.calls()[-1]
    for slices in (1, 2):
        planned = cloud.run('setup', f'--type={kind}', f'--slices={slices}', '--dry-run').stdout
        assert f'tpu_worker.sh smoke {slices * devices}' in planned


# --dry-run


@pytest.mark.parametrize('slices', [1, 2])
@pytest.mark.parametrize('verb', VERBS)
def test_dry_run_prints_what_would_be_called_and_calls_nothing(tmp_path, verb, slices):
    there = {'now': None if verb in ('create', 'babysit') else ['ACTIVE'], 'lives': [['ACTIVE']]}
    cloud = Cloud(tmp_path, **there, jobs=['exited 0'])
    flags = ['--zone=us-west4-a', '--project=p', f'--slices={slices}']
    said = cloud.run(verb, *flags, '--dry-run', *words(verb))
    assert said.returncode == 0, said.stderr
    assert cloud.calls() == []
    assert list((tmp_path / 'tmp').iterdir()) == []
    planned = [line for line in said.stdout.splitlines() if line.startswith('gcloud ')]

    assert cloud.run(verb, *flags, *words(verb)).returncode == 0

    def settled(lines):  # the name of the temporary folder; questions asked on the way
        texts = {re.sub(r'bigjax\.\w{6}', 'bigjax.X', ' '.join(line)) for line in lines}
        return {text for text in texts if ' logs ' not in text and 'tail -n' not in text}

    called = settled(['gcloud', 'compute', 'tpus', *call] for call in cloud.calls())
    assert settled(map(shlex.split, planned)) | questions(called) == called


def questions(calls: set[str]) -> set[str]:
    return {call for call in calls if ' describe ' in call}


# create, wait, delete


@pytest.mark.parametrize('slices', [1, 3])
def test_create(tmp_path, slices):
    cloud = Cloud(tmp_path, lives=[['ACTIVE']])
    cloud.run('create', f'--slices={slices}', '--zone=z', '--project=p', '--valid-for=2h')
    call = cloud.calls()[-1]
    assert call[:3] == ['queued-resources', 'create', 'lm']
    assert {'--zone=z', '--project=p', '--spot', '--valid-until-duration=2h'} <= {*call}
    several = {'--node-count=3', '--node-prefix=lm'}
    assert (several if slices > 1 else {'--node-id=lm'}) <= {*call}


def test_create_on_demand(tmp_path):
    cloud = Cloud(tmp_path, lives=[['ACTIVE']])
    cloud.run('create', '--on-demand', '--runtime=mine')
    assert '--spot' not in cloud.calls()[-1]
    assert '--runtime-version=mine' in cloud.calls()[-1]


def test_create_leaves_what_is_there_alone(tmp_path):
    cloud = Cloud(tmp_path, now=['ACTIVE'])
    said = cloud.run('create')
    assert said.returncode == 78
    assert 'lm is there already, and is ready' in said.stderr
    assert not {'create', 'delete'} & {*cloud.steps()}


@pytest.mark.parametrize(
    ('states', 'nodes', 'code'),
    [
        (['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'], ['READY'], 0),
        (['ACTIVE'], ['CREATING', 'READY'], 0),
        (['PROVISIONING', 'SUSPENDED'], ['READY'], 75),
        (['PROVISIONING', 'FAILED'], ['READY'], 75),
        (['ACTIVE'], ['PREEMPTED'], 75),
        (['ACTIVE'], ['SOMETHING_NEW'], 75),
        (None, ['READY'], 75),
    ],
)
def test_wait(tmp_path, states, nodes, code):
    cloud = Cloud(tmp_path, now=states, nodes=nodes)
    assert cloud.run('wait').returncode == code
    asked_of = {'describe': len(states or [0]), 'describe-vm': len(nodes)}
    if code == 0:
        assert cloud.steps().count('describe') == sum(asked_of.values()) - 1
    assert {*cloud.steps()} <= {*asked_of}


@pytest.mark.parametrize(('times', 'code'), [(3, 0), (100, 1)])
def test_a_silent_google_is_no_lost_tpu(tmp_path, times, code):
    cloud = Cloud(tmp_path, now=['ACTIVE'], down=times)
    said = cloud.run('wait')
    assert said.returncode == code
    assert 'UNAVAILABLE' in said.stderr


def test_every_slice_must_be_ready(tmp_path):
    cloud = Cloud(tmp_path, now=['ACTIVE'], nodes=['READY', 'PREEMPTED'])
    assert cloud.run('wait', '--slices=2').returncode == 75
    assert [call[2] for call in cloud.calls()] == ['lm', 'lm-0', 'lm-1']


@pytest.mark.parametrize(
    ('there', 'down', 'code'), [(['ACTIVE'], 0, 0), (None, 0, 0), (['ACTIVE'], 9, 1)]
)
def test_delete(tmp_path, there, down, code):
    cloud = Cloud(tmp_path, now=there, down=down)
    said = cloud.run('delete', '--zone=z')
    assert said.returncode == code
    assert cloud.calls() == [
        ['queued-resources', 'delete', 'lm', '--force', '--async', '--quiet', '--zone=z']
    ]
    assert ('may cost money' in said.stderr) == bool(down)


def test_ctrl_c_takes_a_half_made_request_back(tmp_path):
    cloud = Cloud(tmp_path, lives=[['HANG']])
    assert interrupted(cloud, 'create') == 130
    assert cloud.steps()[-2:] == ['create', 'delete']


def interrupted(
    cloud: Cloud, *arguments: str, after: str = 'create', number=signal.SIGINT, alone: bool = False
) -> int:
    """The exit code after a signal, once a step has been taken.

    It goes to the script alone, or to all that runs in its terminal, as Ctrl-C does.
    """
    # what a shell finds ignored, as under nohup, it cannot trap
    default = f'import os, signal, sys; signal.signal({number.value}, signal.SIG_DFL)'
    process = subprocess.Popen(
        [sys.executable, '-c', f'{default}; os.execvp("bash", sys.argv[1:])', *command(*arguments)],
        env=cloud.environment(), start_new_session=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while after not in cloud.steps() and time.monotonic() < deadline:
        time.sleep(0.02)
    (os.kill if alone else os.killpg)(process.pid, number)
    try:
        return process.wait(timeout=30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


# ssh


def test_ssh_that_fails_on_one_worker_fails(tmp_path):
    cloud = Cloud(tmp_path, now=['ACTIVE'], ssh={'install': 1})
    assert cloud.run('setup').returncode != 0
    assert 'smoke' not in cloud.steps()
    assert cloud.run('setup').returncode == 0


def test_ssh_that_fails_on_one_slice_fails(tmp_path):
    cloud = Cloud(tmp_path, now=['ACTIVE'], ssh={'start': 1})
    assert cloud.run('run', '--slices=2', *JOB).returncode != 0
    assert sorted(call[2] for call in cloud.calls()) == ['lm-0', 'lm-1']


def test_logs_and_status(tmp_path):
    cloud = Cloud(tmp_path, now=['ACTIVE'], jobs=['running,exited 75'])
    assert 'bigjax-job host1 exited 75' in cloud.run('status').stdout
    cloud.run('logs', '--slices=2', '--follow')
    assert {'lm-0', '--worker=0', '--command=tail -n 100 -F .bigjax/log'} <= {*cloud.calls()[-1]}


# Secrets


def test_secrets_travel_in_a_file_that_only_the_owner_reads(tmp_path):
    cloud = Cloud(tmp_path, now=['ACTIVE'])
    secrets = {
        'WANDB_API_KEY': 'k3y-of-wandb',
        'HF_TOKEN': 'hf \'"$(x)"\n',
        'MINE': '',
        'OTHER': 'not named',
        'LIBTPU_INIT_ARGS': '--xla_a=1 --xla_b=2',
    }
    said = cloud.run('sync', '--env=MINE,LIBTPU_INIT_ARGS', **secrets)
    assert said.returncode == 0
    everything = json.dumps(cloud.calls()) + said.stdout + said.stderr
    assert not any(value in everything for value in secrets.values() if value)
    sent = dict(map(json.loads, (tmp_path / 'sent.jsonl').read_text().splitlines()))
    assert sent['user.env'] == '0o600'
    assert list((tmp_path / 'tmp').iterdir()) == []

    show = f'. {tmp_path}/user.env; printf "%s|" "$WANDB_API_KEY" "$HF_TOKEN" "$MINE" "${{OTHER-}}"'
    show += '; echo "$LIBTPU_INIT_ARGS"'
    there = {'PATH': '/usr/bin:/bin', 'LIBTPU_INIT_ARGS': '--before'}
    answer = subprocess.run(['sh', '-c', show], env=there, capture_output=True, text=True).stdout
    assert answer == 'k3y-of-wandb|hf \'"$(x)"\n|||--before --xla_a=1 --xla_b=2\n'


# All of it, with VMs that really run what they are sent


def test_from_setup_to_exit_codes_on_two_slices_of_two_workers(tmp_path):
    cloud = Cloud(tmp_path, now=['ACTIVE'], vms=2)
    vm_tools(tmp_path / 'vm_bin')
    homes = [tmp_path / 'vms' / f'lm-{node}-{worker}' for node in (0, 1) for worker in (0, 1)]
    for home in homes:
        home.mkdir(parents=True)
        (home / 'devices').write_text('16')
    said = cloud.run('setup', '--slices=2', '--type=v6e-8', '--bucket=b', WANDB_API_KEY='key')
    assert said.returncode == 0, said.stderr
    for home in homes:
        assert (home / 'bigjax' / 'bigjax' / 'cli.py').is_file()
        assert (home / '.bigjax').stat().st_mode & 0o777 == 0o700
        assert (home / '.bigjax' / 'user.env').stat().st_mode & 0o777 == 0o600
        assert any(line.startswith('gcsfuse') and ' b /mnt/b' in line for line in asked(home))

    show = 'import os, sys; print(sys.argv[1:], os.environ["WANDB_API_KEY"], os.getcwd()); exit(75)'
    job = ['/usr/bin/env', sys.executable, '-c', show, *STRANGE]
    assert cloud.run('run', '--slices=2', '--', *job).returncode == 0
    deadline = time.monotonic() + 30
    while 'running' in (report := cloud.run('status', '--slices=2').stdout):
        assert time.monotonic() < deadline
    assert report.count('exited 75') == 4
    for home in homes:
        assert f'{STRANGE!r} key {home / "bigjax"}\n' in (home / '.bigjax' / 'log').read_text()
    log = cloud.run('logs', '--slices=2').stdout
    assert log == (homes[0] / '.bigjax' / 'log').read_text()
