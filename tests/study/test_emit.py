"""The scripts that a sweep becomes, run with stand-ins for what they call."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bigjax.errors import ConfigError
from bigjax.study import emit, jobs, ledger
from tests.cluster.fakes import ROOT, executable

NOTES = """#!{python}
import json, sys
open('{file}', 'a').write(json.dumps(sys.argv[1:]) + '\\n')
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A checkout with two configs and three runs, one of them done already."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / 'cluster', tmp_path / 'cluster')
    (tmp_path / 'config.py').write_text((ROOT / 'configs/digits_cnn.py').read_text())
    executable(tmp_path / 'bin' / 'srun', NOTES.format(python=sys.executable, file='said'))
    executable(tmp_path / 'tpu_setup.sh', NOTES.format(python=sys.executable, file='said'))
    points = [{'seed': 1}, {'task.kind': "it's $x", 'model.widths': [1, 2]}, {'seed': 3}]
    planned = jobs.plan(points, Path())
    ledger.append(Path('My_study'), 'finished', planned[0].id)
    return planned[1:]


def check(path):
    subprocess.run(['bash', '-n', str(path)], check=True)
    tool = shutil.which('shellcheck', path=str(Path(sys.executable).parent)) or 'shellcheck'
    found = subprocess.run([tool, '--severity=warning', str(path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def said():
    return [json.loads(line) for line in Path('said').read_text().splitlines()]


def bash(path, *arguments, **environment):
    environment = {'PATH': f'{Path.cwd()}/bin:/usr/bin:/bin', **environment}
    command = ['bash', str(path), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_each_task_of_the_array_is_its_point(study):
    path = emit.write('slurm', study, Path('My_study'), Path('out'))
    check(path)
    text = path.read_text()
    options = re.findall(r'^#SBATCH --(.*)', text, re.M)
    assert 'array=0-1' in options
    assert 'output=my-study-%A_%a.log' in options
    assert {'signal=TERM@300', 'requeue', 'ntasks-per-node=8'} <= {*options}
    assert len({option.split('=')[0] for option in options}) == len(options)
    assert text.index('#SBATCH') < text.index('set -euo')
    for index, job in enumerate(study):
        bash(path, SLURM_ARRAY_TASK_ID=str(index), SLURM_JOB_ID='7')
        train = said()[index]
        assert train[train.index('train') + 1 :] == job.arguments(Path('My_study'))
    assert "--config.task.kind=it's $x" in said()[0]
    nobody = bash(path, SLURM_ARRAY_TASK_ID='2', SLURM_JOB_ID='7')
    assert nobody.returncode == 78
    assert len(said()) == 2


def test_each_tpu_has_its_point(study):
    path = emit.write('tpu', study, Path('My_study'), Path('out'))
    check(path)
    done = bash(path, '--type=v5e-4', '--bucket=b', JOBS='2')
    assert done.returncode == 0, done.stderr
    calls = {call[1]: call for call in said()}
    for job in study:
        name = f'--name=my-study-{job.id}'
        there = ['babysit', name, '--type=v5e-4', '--bucket=b', '--', 'bigjax', 'train']
        assert calls[name] == [*there, *job.arguments(Path('My_study'))]
    assert len(calls) == 2


def test_nothing_to_emit(study):
    for job in study:
        ledger.append(Path('My_study'), 'diverged', job.id)
    with pytest.raises(ConfigError, match='nothing to emit'):
        emit.write('slurm', study, Path('My_study'), Path('out'))
