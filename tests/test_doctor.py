import json
import os
import subprocess
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from bigjax import doctor


@pytest.fixture
def machine(monkeypatch):
    """Makes JAX and nvidia-smi answer as told: JAX's standard output, or its dying words."""

    def machine(jax='', dies='', gpus='', hangs=False):
        def run(command, **_):
            if command[0] == 'nvidia-smi':
                if not gpus:
                    raise FileNotFoundError
                return SimpleNamespace(stdout=gpus)
            if hangs:
                raise subprocess.TimeoutExpired(command, 1)
            return SimpleNamespace(returncode=1 if dies else 0, stdout=jax, stderr=dies)

        fake = SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)
        monkeypatch.setattr(doctor, 'subprocess', fake)
        monkeypatch.delenv('JAX_PLATFORMS', raising=False)
        monkeypatch.delenv('TPU_ACCELERATOR_TYPE', raising=False)

    return machine


def answer(platform, kinds, memory=0):
    return json.dumps({'platform': platform, 'kinds': kinds, 'memory': memory})


CPU = answer('cpu', ['cpu'])


# Packages


def test_packages_that_fit():
    check = doctor.packages()
    assert (check.status, check.cure) == ('ok', '')
    assert 'jaxlib' in check.found


@pytest.mark.parametrize(
    ('out', 'err', 'status'),
    [('optax 0.2 requires jax, which is not installed.\n', '', 'fail'), ('', 'no pip', 'warn')],
)
def test_packages_that_do_not_fit(monkeypatch, out, err, status):
    answer = SimpleNamespace(returncode=1, stdout=out, stderr=err)
    monkeypatch.setattr(doctor.subprocess, 'run', lambda *_, **__: answer)
    check = doctor.packages()
    assert (check.status, check.found) == (status, (out or err).strip())
    assert 'constraints.txt' in check.cure


def test_bigjax_not_installed(monkeypatch):
    def find(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, 'version', find)
    assert doctor.packages().status == 'warn'


# Devices


def test_jax_really_runs():
    assert doctor.devices() == doctor.Check('devices', 'ok', '8 x cpu')


def test_a_cpu_alone_is_fine(machine):
    machine(jax=CPU)
    assert doctor.devices().status == 'ok'


def test_accelerators_are_counted_with_their_memory(machine):
    machine(jax=answer('gpu', ['NVIDIA H200'] * 2, 139 * doctor.GIB), gpus='GPU 0: NVIDIA H200')
    assert doctor.devices() == doctor.Check('devices', 'ok', '2 x NVIDIA H200, 139 GiB each')


def test_a_gpu_that_jax_does_not_see(machine):
    machine(jax=CPU, gpus='GPU 0: NVIDIA H200')
    check = doctor.devices()
    assert check.status == 'fail'
    assert '.[cuda]' in check.cure


def test_a_tpu_that_jax_does_not_see(machine, monkeypatch):
    machine(jax=CPU)
    monkeypatch.setenv('TPU_ACCELERATOR_TYPE', 'v5litepod-8')
    check = doctor.devices()
    assert check.status == 'fail'
    assert '.[tpu]' in check.cure


def test_a_gpu_hidden_on_purpose(machine, monkeypatch):
    machine(jax=CPU, gpus='GPU 0: NVIDIA H200')
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    assert doctor.devices().status == 'warn'


def test_a_platform_asked_for_and_absent(machine, monkeypatch):
    machine(dies='Traceback\nRuntimeError: no such backend')
    monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
    check = doctor.devices()
    assert check.status == 'fail'
    assert 'JAX_PLATFORMS=cuda: RuntimeError: no such backend' in check.found
    assert 'unset JAX_PLATFORMS' in check.cure


def test_jax_that_crashes(machine):
    machine(dies='Illegal instruction')
    check = doctor.devices()
    assert check.status == 'fail'
    assert 'Illegal instruction' in check.found
    assert check.cure


def test_jax_that_hangs(machine):
    machine(hangs=True)
    assert doctor.devices().status == 'fail'


# Memory and disk


@pytest.mark.parametrize(('gib', 'status'), [(0.5, 'fail'), (2, 'warn'), (16, 'ok')])
def test_memory(tmp_path, gib, status):
    meminfo = tmp_path / 'meminfo'
    meminfo.write_text(f'MemTotal: 99 kB\nMemAvailable: {int(gib * 2**20)} kB\n')
    assert doctor.memory(meminfo).status == status


def test_memory_where_the_system_does_not_tell(tmp_path):
    assert doctor.memory(tmp_path / 'absent').status == 'ok'


@pytest.mark.parametrize(('gib', 'status'), [(0.5, 'fail'), (5, 'warn'), (50, 'ok')])
def test_disk_space(monkeypatch, tmp_path, gib, status):
    usage = namedtuple('Usage', 'free')(gib * doctor.GIB)
    monkeypatch.setattr(doctor.shutil, 'disk_usage', lambda path: usage)
    check = doctor.disk(tmp_path / 'not' / 'made' / 'yet')
    assert check.status == status
    assert bool(check.cure) == (status != 'ok')


def test_workdir_is_tried_but_not_made(tmp_path):
    assert 'GiB free' in doctor.disk(tmp_path / 'runs' / 'one').found
    assert list(tmp_path.iterdir()) == []


def test_workdir_that_cannot_be_written(monkeypatch, tmp_path):
    def refuse(dir):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(doctor, 'tempfile', SimpleNamespace(TemporaryFile=refuse))
    check = doctor.disk(tmp_path)
    assert check.status == 'fail'
    assert 'Permission denied' in check.found


def test_workdir_that_is_a_file(tmp_path):
    (tmp_path / 'file').touch()
    assert doctor.disk(tmp_path / 'file').status == 'fail'


# Data


def prepare(folder: Path, name: str, file_format: str | None) -> None:
    (folder / name).mkdir(parents=True)
    info = {'fileFormat': file_format} if file_format else {}
    (folder / name / 'dataset_info.json').write_text(json.dumps(info))


def test_prepared_data(monkeypatch, tmp_path):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    assert doctor.prepared_data().found.startswith('none prepared')
    prepare(tmp_path, 'mnist/3.0.1', 'array_record')
    prepare(tmp_path, 'glue/cola/2.0.0', 'array_record')
    assert doctor.prepared_data() == doctor.Check(
        'tfds data', 'ok', f'glue/cola, mnist in {tmp_path}'
    )


@pytest.mark.parametrize('file_format', ['tfrecord', None])
def test_prepared_data_that_needs_tensorflow(monkeypatch, tmp_path, file_format):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    prepare(tmp_path, 'mnist/3.0.1', file_format)
    check = doctor.prepared_data()
    assert check.status == 'warn'
    assert 'mnist' in check.found


# The command


@pytest.mark.parametrize(('worst', 'code'), [('ok', 0), ('warn', 0), ('fail', 78)])
def test_exit_code_and_plain_lines(monkeypatch, capsys, tmp_path, worst, code):
    findings = [
        doctor.Check('python', 'ok', '3.12'),
        doctor.Check('disk', worst, 'full', 'free some'),
    ]
    monkeypatch.setattr(doctor, 'checks', lambda workdir: findings)
    assert doctor.main(tmp_path) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines == ['ok    python: 3.12', f'{worst:4}  disk: full; free some']


def test_every_check_of_this_machine_has_a_cure_or_is_fine(tmp_path):
    findings = doctor.checks(tmp_path)
    assert len({check.name for check in findings}) == len(findings) == 5
    assert all(check.status == 'ok' or check.cure for check in findings)
    assert os.listdir(tmp_path) == []
