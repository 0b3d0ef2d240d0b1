"""Small runs, in this process and in others, to do harm to."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from bigjax.train import checkpoint
from bigjax.train.progress import Progress
from bigjax.train.writers import read_events, read_metrics

ROOT = Path(__file__).parents[2]

CONFIG = """
from tests.train.tiny import BASE

def get_config():
    return {**BASE, 'checkpoint': {'every': 2, 'keep': 3}}
"""

PATCHED = """
import os, signal, sys, time
from bigjax import cli
from bigjax.train import checkpoint, lock, manifest
from bigjax.train.progress import Progress

def before(module, name, call):
    '''Calls `call` with the same arguments first.'''
    old = getattr(module, name)
    setattr(module, name, lambda *args, **kwargs: (call(*args, **kwargs), old(*args, **kwargs))[1])

def after(module, name, call):
    old = getattr(module, name)
    setattr(module, name, lambda *args, **kwargs: (old(*args, **kwargs), call(*args, **kwargs))[0])

def send(number):
    os.kill(os.getpid(), number)

{patch}
sys.exit(cli.main(sys.argv[1:]))
"""


def command(workdir, *flags):
    """The arguments of `bigjax train` for a run of six steps in `workdir`, saved every second."""
    config = workdir.with_name(f'{workdir.name}.py')
    config.write_text(CONFIG)
    return ['train', f'--config={config}', f'--workdir={workdir}', *flags]


def start(workdir, patch='', *flags, wrapper=()):
    """A process that runs it, after the lines of `patch`."""
    return bigjax(patch, *command(workdir, *flags), wrapper=wrapper)


def bigjax(patch, *arguments, wrapper=()):
    """A process of any command, after the lines of `patch`."""
    code = PATCHED.replace('{patch}', patch)
    return subprocess.Popen(
        [*wrapper, sys.executable, '-c', code, *arguments],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def end(process, code):
    """What it wrote to stderr, once it has ended with `code`."""
    try:
        _, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == code, errors
    return errors


def stop_at(monkeypatch, step):
    """SIGTERM to this process when `step` is shown, once."""
    update = Progress.update

    def signalling(self, at, metrics=None):
        update(self, at, metrics)
        if at == step and metrics is None:
            monkeypatch.setattr(Progress, 'update', update)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, 'update', signalling)


def assert_resumed(workdir, *steps):
    """Its attempts began at these; None is a fresh start."""
    starts = [row.get('step') for row in read_events(workdir) if row['event'] == 'start']
    assert starts == list(steps)


def numbers(workdir):
    """All that was measured, in the order it was written, but for what time decides."""
    return [
        {k: v for k, v in row.items() if k not in ('time', 'attempt') and 'perf/' not in k}
        for row in read_metrics(workdir)
    ]


def there(workdir, config):
    with checkpoint.open_checkpoints(workdir, config.checkpoint) as checkpoints:
        return checkpoint.steps(checkpoints)


def good(workdir, config):
    with checkpoint.open_checkpoints(workdir, config.checkpoint) as checkpoints:
        return checkpoint.latest_good(checkpoints)


def flip(path, at=None, bit=0):
    """One bit of a file, by default in its middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1 << bit
    path.write_bytes(content)


def largest(folder):
    """The largest file of array data in a checkpoint."""
    return max(folder.rglob('d/*'), key=lambda path: path.stat().st_size)


def tree(folder):
    """Every file below `folder` with its bytes."""
    return {path: path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}
