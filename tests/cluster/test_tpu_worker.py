"""cluster/tpu_worker.sh, run for real in a home of its own; only apt, uv and sudo are not real."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from tests.cluster.fakes import ROOT, asked, executable, lives, vm_tools


class Worker:
    def __init__(self, folder):
        self.home = folder / 'a home'
        self.state = self.home / '.bigjax'
        self.bin = folder / 'bin'
        self.state.mkdir(parents=True)
        vm_tools(self.bin)
        shutil.copy(ROOT / 'cluster' / 'tpu_worker.sh', self.state)
        (self.home / 'devices').write_text('8')
        self.send({'pyproject.toml': '', 'constraints.txt': 'jax==0.12.0'})

    def send(self, files: dict[str, str]) -> None:
        with tarfile.open(self.state / 'code.tar.gz', 'w:gz') as archive:
            for name, text in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(text.encode())
                archive.addfile(info, io.BytesIO(text.encode()))
        (self.state / 'user.env').write_text('WANDB_API_KEY=key\n')
        self('unpack')

    def __call__(self, *arguments, code=0):
        environment = {
            'HOME': str(self.home), 'PATH': f'{self.bin}:/usr/bin:/bin',
            'TPU_POLL_SECONDS': '0.01', 'TPU_PATIENCE': '20', 'TPU_STOP_SECONDS': '1',
            'LIBTPU_LOCKFILE': str(self.home / 'libtpu_lockfile'), 'TMUX_TMPDIR': str(self.home),
        }  # fmt: skip
        said = subprocess.run(
            ['bash', '.bigjax/tpu_worker.sh', *arguments], cwd=self.home, env=environment,
            capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert said.returncode == code, said.stdout + said.stderr
        return said.stdout + said.stderr

    def set_up(self):
        self('install', 'tpu')
        self('smoke', '8')

    def asked(self, start: str) -> list[str]:
        return [line for line in asked(self.home) if line.startswith(start)]

    def run(self, *command: str) -> str:
        """Starts a command; what status says once it has ended."""
        self('start', *command)
        deadline = time.monotonic() + 30
        while 'running' in (said := self('status')):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return said.split(maxsplit=2)[2].strip()

    def log(self) -> str:
        return (self.state / 'log').read_text()


@pytest.fixture
def worker(tmp_path):
    worker = Worker(tmp_path)
    yield worker
    worker('stop')


# Installing


def test_set_up_twice_installs_once(worker):
    worker.set_up()
    first, stamp = worker.asked('uv'), (worker.state / 'stamp').read_text()
    code = worker.home / 'bigjax'
    assert first == [
        f'uv venv --quiet --clear --python 3.12 {worker.state}/venv',
        f'uv pip install --quiet --python {worker.state}/venv/bin/python'
        f' --constraint {code}/constraints.txt --editable {code}[tpu]',
    ]
    worker.set_up()
    assert worker.asked('uv') == first
    assert (worker.state / 'stamp').read_text() == stamp
    assert len(worker.asked('sudo tee /sys/kernel/mm/transparent_hugepage/enabled')) == 2


def test_a_half_failed_install_is_tried_again(worker):
    (worker.home / 'uv_fails').touch()
    worker('install', 'tpu', code=1)
    assert not (worker.state / 'stamp').exists()
    worker.set_up()
    assert (worker.state / 'stamp').exists()


def test_an_install_whose_smoke_test_fails_is_tried_again(worker):
    worker.set_up()
    (worker.home / 'devices').write_text('4')
    worker.send({'pyproject.toml': '', 'constraints.txt': 'jax==0.12.1'})
    worker('install', 'tpu')
    assert 'the smoke test failed' in worker('smoke', '8', code=1)
    worker('install', 'tpu')
    assert len(worker.asked('uv')) == 6
    worker.send({'pyproject.toml': '', 'constraints.txt': 'jax==0.12.0'})  # as at first, but
    worker('install', 'tpu')  # what is there now is something else
    assert len(worker.asked('uv')) == 8


@pytest.mark.parametrize('change', ['pins', 'extras'])
def test_other_packages_are_installed_anew(worker, change):
    worker.set_up()
    if change == 'pins':
        worker.send({'pyproject.toml': '', 'constraints.txt': 'jax==0.12.1'})
    worker('install', 'tpu,wandb' if change == 'extras' else 'tpu')
    assert len(worker.asked('uv')) == 4


def test_apt_is_waited_for(worker):
    (worker.bin / 'python3').write_text('#!/bin/sh\ncase $* in *--version) exit 1 ;; esac\n')
    (worker.home / 'apt_busy').write_text('x\n' * 3)
    worker('install', 'tpu')
    lines = [line.removeprefix('sudo ').split()[0] for line in asked(worker.home)]
    assert lines[: lines.index('env')] == ['fuser'] * 4
    assert any('update' in line for line in worker.asked('apt-get'))
    assert any('install tmux python3-pip' in line for line in worker.asked('apt-get'))


def test_apt_is_not_waited_for_without_end(worker):
    (worker.bin / 'python3').write_text('#!/bin/sh\nexit 1\n')
    (worker.home / 'apt_busy').write_text('x\n' * 1000)
    assert 'lock of apt' in worker('install', 'tpu', code=1)
    assert worker.asked('apt-get') == []


def test_environment(worker):
    worker('install', 'tpu', 'my-bucket')
    show = 'echo $TPU_PREMAPPED_BUFFER_SIZE $JAX_COMPILATION_CACHE_DIR $PYTHONUNBUFFERED'
    assert worker.run('sh', '-c', f'{show} $WANDB_API_KEY; ulimit -n') == 'exited 0'
    assert '\n17179869184 /mnt/my-bucket/jax_cache 1 key\n' in worker.log()
    raised = '\n65536\n' in worker.log()  # by the job itself, or else by root
    assert raised != any('--nofile=65536:65536' in line for line in worker.asked('sudo prlimit'))


def test_a_reboot_forgets_the_bucket_and_start_does_not(worker):
    worker('install', 'tpu', 'my-bucket')
    worker.run('true')
    assert len(worker.asked('gcsfuse')) == 2
    executable(worker.bin / 'gcsfuse', '#!/bin/sh\nexit 1\n')
    worker('start', 'true', code=1)  # rather than writing checkpoints to a disk that will vanish
    assert 'none' in worker('status')


# The code


def test_unpack_removes_what_is_gone_and_keeps_what_was_made(worker):
    code = worker.home / 'bigjax'
    worker.send({'a.py': '1', 'folder/b c.py': '2', "it's.py": '3'})
    (code / 'runs').mkdir()
    (code / 'runs' / 'log').write_text('mine')
    worker.send({'a.py': '4'})
    left = {str(path.relative_to(code)) for path in code.rglob('*') if path.is_file()}
    assert left == {'a.py', 'runs/log'}
    assert (code / 'a.py').read_text() == '4'
    assert (worker.state / 'user.env').stat().st_mode & 0o777 == 0o600


# The job


@pytest.mark.parametrize('code', [0, 75])
def test_exit_code(worker, code):
    worker('install', 'tpu')
    assert 'none' in worker('status')
    assert worker.run('sh', '-c', f'pwd; exit {code}') == f'exited {code}'
    assert f'{worker.home}/bigjax\n' in worker.log()


def test_a_command_that_is_not_there(worker):
    worker('install', 'tpu')
    assert worker.run('bigjacks', 'train') == 'exited 127'
    assert 'bigjacks' in worker.log()


SAVES = """
import pathlib, signal, sys, time
def leave(*_):
    pathlib.Path('saved').touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
print('ready', flush=True)
time.sleep(60)
"""


def ready(worker, times=1):
    deadline = time.monotonic() + 30
    while worker.log().count('ready\n') < times:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int((worker.state / 'pid').read_text().split()[0])


def test_start_ends_the_job_before_which_may_save(worker):
    worker('install', 'tpu')
    (worker.home / 'libtpu_lockfile').touch()
    worker('start', sys.executable, '-c', SAVES)
    assert not (worker.home / 'libtpu_lockfile').exists()
    before = ready(worker)
    assert 'running' in worker('status')
    assert f'process group {before}' in worker('start', sys.executable, '-c', SAVES)
    assert not lives(before)
    assert (worker.home / 'bigjax' / 'saved').exists()
    assert 'exit code 75' in worker.log()
    assert lives(ready(worker, 2))


def test_a_job_that_does_not_end_is_killed(worker):
    worker('install', 'tpu')
    ignores = SAVES.replace('leave)', 'signal.SIG_IGN)')
    worker('start', sys.executable, '-c', ignores)
    group = ready(worker)
    assert 'killing it' in worker('stop')
    time.sleep(0.1)
    assert not lives(group)


def test_a_reused_pid_is_nobody_of_ours(worker):
    worker('install', 'tpu')
    with subprocess.Popen(['sleep', '60'], start_new_session=True) as stranger:
        (worker.state / 'pid').write_text(f'{stranger.pid} 1\n')
        worker('start', 'true')
        assert stranger.poll() is None
        os.kill(stranger.pid, signal.SIGKILL)


@pytest.mark.skipif(not shutil.which('tmux'), reason='needs tmux')
def test_with_tmux(worker):
    (worker.bin / 'tmux').unlink()
    worker('install', 'tpu')
    strange = ['a "b" $c', "it's", '', 'two\nlines', '#{x}', '%1']
    show = 'import sys; print(sys.argv[1:])'
    assert worker.run(sys.executable, '-c', show, *strange) == 'exited 0'
    assert repr(strange) in worker.log()
