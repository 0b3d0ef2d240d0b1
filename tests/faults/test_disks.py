"""Disks that are full, not to be written, or out of order for a moment."""

import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from bigjax import cli
from bigjax.errors import EnvironmentProblem
from bigjax.train import loop
from bigjax.train.loop import train
from bigjax.train.progress import Progress
from bigjax.train.writers import read_events
from tests.faults.runs import command, end, good, numbers, start
from tests.train.tiny import tiny_config

CONFIG = tiny_config(**{'model.widths': (256, 256), 'checkpoint': {'every': 2, 'keep': 3}})
"""Three quarters of a megabyte a checkpoint."""


def mount(folder, *options):
    command = ['mount', '-t', 'tmpfs', *options, 'tmpfs', str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'no tmpfs can be mounted here: {error}')


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mount(folder, '-o', 'size=8m')
    yield folder
    subprocess.run(['umount', '--lazy', str(folder)], check=True)


def fill(disk, leaving):
    """A file that leaves about so many bytes, while others write."""
    with (disk / 'filler').open('wb', buffering=0) as file, suppress(OSError):
        while (free := shutil.disk_usage(disk).free) > leaving:
            file.write(bytes(min(free - leaving, 4096)))


@pytest.fixture
def untouched(monkeypatch):
    """Nothing may be compiled."""
    monkeypatch.setattr(loop, 'first_state', lambda *_: pytest.fail('it went on to the state'))


def fill_at_step_3(monkeypatch, disk, leaving, saved):
    """Once the checkpoint of step `saved` is there."""
    update = Progress.update

    def filling(self, step, metrics=None):
        update(self, step, metrics)
        if step == 3 and metrics is None:
            while saved and not (disk / 'run' / 'checkpoints' / saved).is_dir():
                time.sleep(0.01)
            fill(disk, leaving)

    monkeypatch.setattr(Progress, 'update', filling)


def test_row_16_a_full_disk_is_told_at_the_same_save(disk, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fill_at_step_3(patch, disk, leaving=300_000, saved='2')
        with pytest.raises(EnvironmentProblem, match=r'step 4 could .*No space left') as e:
            train(CONFIG, disk / 'run')
    assert e.value.exit_code == 78
    assert 'the last checkpoint is of step 2' in str(e.value)
    there = {path.name for path in (disk / 'run' / 'checkpoints').iterdir()}
    assert {name for name in there if not name.startswith('4.partial')} == {'2'}
    assert good(disk / 'run', CONFIG) == 2
    saves = [row['step'] for row in read_events(disk / 'run') if row['event'] == 'save']
    assert saves == [2, 4]  # the one of step 6 was never begun
    (disk / 'filler').unlink()
    train(CONFIG, disk / 'run')
    assert not [*(disk / 'run' / 'checkpoints').glob('*.partial*')]  # TensorStore's stragglers
    train(CONFIG, tmp_path / 'whole')
    assert numbers(disk / 'run') == numbers(tmp_path / 'whole')


def test_row_16_metrics_on_a_full_disk(disk, monkeypatch):
    fill_at_step_3(monkeypatch, disk, leaving=0, saved=None)
    values = {'train.steps': 99, 'checkpoint.every': 0, 'eval.every': 0}
    with pytest.raises(EnvironmentProblem, match=r'metrics.jsonl: No space left'):
        train(tiny_config(**values), disk / 'run')


def test_row_17_a_folder_that_is_read_only_is_told_before_compiling(disk, untouched, capsys):
    arguments = command(disk / 'run')
    subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
    assert cli.main(arguments) == 78
    (line,) = capsys.readouterr().err.splitlines()
    assert f'cannot write run folder {disk / "run"}: Read-only file system' in line


def test_row_17_a_run_on_a_disk_gone_read_only(disk, whole, untouched, config):
    shutil.copytree(whole, disk / 'run')
    subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
    with pytest.raises(EnvironmentProblem, match=r'cannot write run folder.*Read-only'):
        train(config, disk / 'run')
    assert good(disk / 'run', config) == 6  # reading it goes on


def test_row_17_a_disk_without_room_is_told_before_compiling(disk, untouched):
    fill(disk, leaving=500_000)
    with pytest.raises(EnvironmentProblem, match=r'MB of disk left; expected \d MB for a checkpo'):
        train(CONFIG, disk / 'run')
    (disk / 'filler').unlink()
    fill(disk, leaving=0)
    with pytest.raises(EnvironmentProblem, match='No space left'):
        train(CONFIG, disk / 'other')


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

static atomic_int opens;

/* whether this is one of the first EIO_OPENS opens of a new file of a checkpoint after step 2 */
static int fails(const char *path, int flags) {
    if (!(flags & 0100) || !strstr(path, ".partial") || strstr(path, "/2.partial")) return 0;
    return atomic_fetch_add(&opens, 1) < atoi(getenv("EIO_OPENS"));
}

#define OPEN(name)                                              \
    int name(const char *path, int flags, mode_t mode) {        \
        if (fails(path, flags)) { errno = EIO; return -1; }     \
        int (*next)(const char *, int, mode_t) = dlsym(RTLD_NEXT, #name); \
        return next(path, flags, mode);                         \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                            \
    int name(int at, const char *path, int flags, mode_t mode) { \
        if (fails(path, flags)) { errno = EIO; return -1; }     \
        int (*next)(int, const char *, int, mode_t) = dlsym(RTLD_NEXT, #name); \
        return next(at, path, flags, mode);                     \
    }
OPENAT(openat)
OPENAT(openat64)
"""


@pytest.fixture(scope='module')
def shim(tmp_path_factory):
    """A library that comes before libc's, in which opening files fails a few times."""
    source = tmp_path_factory.mktemp('shim') / 'shim.c'
    source.write_text(SHIM)
    library = source.with_suffix('.so')
    compiler = shutil.which('cc')
    if compiler is None or sys.platform != 'linux':
        pytest.skip('no C compiler here, or no Linux')
    subprocess.run(
        [compiler, '-shared', '-fPIC', '-o', str(library), str(source), '-ldl'], check=True
    )
    return library


@pytest.mark.parametrize(('opens', 'code', 'saved'), [(2, 0, 6), (10**6, 78, 2)])
def test_row_18_a_save_is_tried_again_but_not_for_ever(
    shim, tmp_path, whole, config, opens, code, saved
):
    run = tmp_path / 'run'
    wrapper = ['env', f'LD_PRELOAD={shim}', f'EIO_OPENS={opens}']
    slowly = "before(Progress, 'update', lambda *_: time.sleep(0.5))"  # it is told while we run
    errors = end(start(run, slowly, wrapper=wrapper), code)
    log = (run / 'log.txt').read_text()
    assert 'step 4 could not be saved' in log
    assert log.count('another save is tried') == (1 if code == 0 else 3)
    assert good(run, config) == saved
    if code == 0:
        assert numbers(run) == numbers(whole)
    else:
        # amid what TensorStore's threads say of the writes that nobody waits for any more
        (line,) = re.findall('bigjax: .*', errors)
        assert 'Input/output error' in line
