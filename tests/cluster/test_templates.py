"""The shell scripts of the repository, and the templates for SLURM and Kubernetes."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bigjax import errors
from tests.cluster.fakes import ROOT, executable

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ('.', '.ci', 'cluster', 'tools', 'benchmarks')
    for path in (ROOT / folder).glob('*')
    if path.is_file() and re.match(rb'#!.*\b(ba)?sh\n', path.read_bytes()[:40])
)
STOP = {errors.EXIT_DIVERGED, errors.EXIT_USER_ERROR}


def test_shellcheck():
    assert {'tpu_setup.sh', 'cluster/tpu_worker.sh', 'cluster/slurm.sh'} <= {*SCRIPTS}
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob('[!.]*/*.sh')} <= {
        *SCRIPTS,
        'cluster/tpu_babysit.sh',  # checked with tpu_setup.sh, which it is part of
    }
    tool = shutil.which('shellcheck', path=str(Path(sys.executable).parent)) or 'shellcheck'
    found = subprocess.run(
        [tool, '--external-sources', *SCRIPTS], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_exit_codes_are_those_of_bigjax():
    text = (ROOT / 'tpu_setup.sh').read_text()
    for name in ('EXIT_DIVERGED', 'EXIT_PREEMPTED', 'EXIT_USER_ERROR'):
        assert f'{name}={getattr(errors, name)}' in text


# SLURM

SRUN = """#!{python}
import json, sys
open('tasks', 'a').write(json.dumps(sys.argv[1:]) + '\\n')
sys.exit({code})
"""


def slurm(tmp_path, code: int, gpu: str = 'NVIDIA H100 80GB HBM3') -> tuple[int, list[str]]:
    """The exit code of the script where that of the tasks is `code`; what scontrol was told."""
    executable(tmp_path / 'bin' / 'srun', SRUN.format(python=sys.executable, code=code))
    executable(tmp_path / 'bin' / 'scontrol', '#!/bin/sh\necho "$@" >>told\n')
    executable(tmp_path / 'bin' / 'nvidia-smi', f'#!/bin/sh\necho "{gpu}"\n')
    environment = {'PATH': f'{tmp_path}/bin:/usr/bin:/bin', 'SLURM_JOB_ID': '7'}
    (tmp_path / 'told').unlink(missing_ok=True)
    done = subprocess.run(
        ['bash', str(ROOT / 'cluster/slurm.sh'), '--config=a b.py', '--workdir=$x'],
        cwd=tmp_path, env=environment, capture_output=True,
    )  # fmt: skip
    told = tmp_path / 'told'
    return done.returncode, told.read_text().splitlines() if told.exists() else []


def test_slurm_asks_for_a_task_per_gpu_and_a_timely_signal():
    text = (ROOT / 'cluster/slurm.sh').read_text()
    options = dict(line.partition('=')[::2] for line in re.findall(r'^#SBATCH --(.*)', text, re.M))
    assert options['ntasks-per-node'] == options['gpus-per-node']
    assert options['signal'] == 'TERM@300'
    assert options['open-mode'] == 'append'
    assert 'requeue' in options
    assert text.index('#SBATCH') < text.index('set -euo')  # sbatch stops reading at a command


def test_slurm_trains_with_the_flags_given(tmp_path):
    slurm(tmp_path, 0)
    (task,) = map(json.loads, (tmp_path / 'tasks').read_text().splitlines())
    assert task[-4:] == ['.venv/bin/bigjax', 'train', '--config=a b.py', '--workdir=$x']


@pytest.mark.parametrize(
    ('code', 'told'),
    [(0, []), (70, []), (78, []), (75, ['requeue 7']), (1, ['requeue 7']), (137, ['requeue 7'])],
)
def test_slurm_goes_by_the_exit_code(tmp_path, code, told):
    assert slurm(tmp_path, code) == (code, told)


def test_slurm_requeues_crashes_a_bounded_number_of_times_and_preemptions_always(tmp_path):
    for _ in range(5):
        assert slurm(tmp_path, 75) == (75, ['requeue 7'])
    for _ in range(3):
        assert slurm(tmp_path, 1) == (1, ['requeue 7'])
    assert slurm(tmp_path, 1) == (1, [])


@pytest.mark.parametrize(('gpu', 'connections'), [('NVIDIA H100', '1'), ('NVIDIA B200', None)])
def test_slurm_environment_by_gpu(tmp_path, gpu, connections):
    slurm(tmp_path, 0, gpu)
    executable(tmp_path / 'bin' / 'srun', '#!/bin/sh\nenv >environment\n')
    environment = {'PATH': f'{tmp_path}/bin:/usr/bin:/bin', 'SLURM_JOB_ID': '7'}
    script = ['bash', str(ROOT / 'cluster/slurm.sh')]
    subprocess.run(script, cwd=tmp_path, env=environment, check=True)
    lines = (tmp_path / 'environment').read_text().splitlines()
    there = dict(line.partition('=')[::2] for line in lines)
    assert there['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '.9'
    assert there.get('CUDA_DEVICE_MAX_CONNECTIONS') == connections


# Kubernetes


@pytest.fixture(params=['gpu', 'tpu'])
def jobset(request):
    return yaml.safe_load((ROOT / f'cluster/kubernetes_{request.param}.yaml').read_text())


def pod(jobset: dict) -> dict:
    return jobset['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']


def test_kubernetes_indexed_jobs_of_one_set(jobset):
    assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
    assert jobset['spec'].keys() <= {'network', 'failurePolicy', 'replicatedJobs'}
    (job,) = jobset['spec']['replicatedJobs']
    assert job.keys() == {'name', 'replicas', 'template'}
    spec = job['template']['spec']
    assert spec['completionMode'] == 'Indexed'
    assert spec['parallelism'] == spec['completions']
    assert spec['backoffLimit'] == 0  # one pod alone cannot go on: the set restarts


def test_kubernetes_goes_by_the_exit_code(jobset):
    spec = jobset['spec']['replicatedJobs'][0]['template']['spec']
    (container,) = pod(jobset)['containers']
    assert pod(jobset)['restartPolicy'] == 'Never'  # or podFailurePolicy is refused
    rules = spec['podFailurePolicy']['rules']
    by_code = {}
    for rule in rules:
        if 'onExitCodes' in rule:
            assert rule['onExitCodes']['containerName'] == container['name']
            assert rule['onExitCodes']['operator'] == 'In'
            by_code |= dict.fromkeys(rule['onExitCodes']['values'], rule['action'])
    assert by_code == dict.fromkeys(STOP, 'FailJob') | {errors.EXIT_PREEMPTED: 'Ignore'}
    assert rules[-1]['onPodConditions'] == [{'type': 'DisruptionTarget', 'status': 'True'}]
    policy = jobset['spec']['failurePolicy']
    assert policy['maxRestarts'] > 0
    (rule,) = policy['rules']
    assert (rule['action'], rule['onJobFailureReasons']) == ('FailJobSet', ['PodFailurePolicy'])


def test_kubernetes_keeps_what_was_trained_and_secrets_out_of_argv(jobset):
    (container,) = pod(jobset)['containers']
    mounts = {mount['name']: mount['mountPath'] for mount in container['volumeMounts']}
    assert mounts.keys() == {volume['name'] for volume in pod(jobset)['volumes']}
    words = shlex.split(' '.join([*container['command'], *container['args']]))
    assert any(word.startswith(f'--workdir={mounts["runs"]}/') for word in words)
    assert container['envFrom'] == [{'secretRef': {'name': 'bigjax', 'optional': True}}]


def test_kubernetes_gpu_processes_find_process_0():
    jobset = yaml.safe_load((ROOT / 'cluster/kubernetes_gpu.yaml').read_text())
    name, job = jobset['metadata']['name'], jobset['spec']['replicatedJobs'][0]
    (text,) = pod(jobset)['containers'][0]['args']
    flags = dict(word.partition('=')[::2] for word in shlex.split(text) if word[:2] == '--')
    host, port = flags['--coordinator'].split(':')
    assert host == f'{name}-{job["name"]}-0-0.{name}'
    assert jobset['spec']['network']['enableDNSHostnames']
    assert int(port)
    assert int(flags['--num_processes']) == job['replicas'] * job['template']['spec']['parallelism']
    assert flags['--process_id'] == '$JOB_COMPLETION_INDEX'
    assert text.startswith('exec bigjax train ')  # so that SIGTERM reaches it


def test_kubernetes_tpu_slices_have_all_their_hosts():
    jobset = yaml.safe_load((ROOT / 'cluster/kubernetes_tpu.yaml').read_text())
    job = jobset['spec']['replicatedJobs'][0]['template']['spec']
    chips = 1
    for size in pod(jobset)['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x'):
        chips *= int(size)
    (container,) = pod(jobset)['containers']
    assert job['parallelism'] * container['resources']['limits']['google.com/tpu'] == chips


# The guide


def guide() -> list[list[str]]:
    text = (ROOT / 'docs/clusters.md').read_text().replace('\\\n', ' ')
    lines = re.findall(r'^\./tpu_setup\.sh .*$', text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize('words', guide(), ids=lambda words: words[1])
def test_commands_of_the_guide(tmp_path, words):
    _, verb, *rest = words
    done = subprocess.run(
        ['bash', str(ROOT / 'tpu_setup.sh'), verb, '--dry-run', *rest],
        env={'PATH': '/usr/bin:/bin', 'TMPDIR': str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'gcloud compute tpus' in done.stdout


def test_the_guide_shows_every_verb():
    usage = (ROOT / 'tpu_setup.sh').read_text()
    assert {words[1] for words in guide()} == {*re.search("VERBS='(.*)'", usage)[1].split()}
