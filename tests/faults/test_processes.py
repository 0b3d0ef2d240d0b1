"""Rows 3, 9, 10, 11, 26, 29: real processes that are stopped, die, hang, or are slow."""

import json
import signal
import time

import pytest

from bigjax.train.loop import train as train_here
from bigjax.train.writers import read_events
from tests.faults.runs import bigjax, end, numbers, start
from tests.test_hosts import (
    ended,
    flags,
    folder,
    has_step,
    launch,
    lines,
    nothing_left_running,
    train,
    until,
)
from tests.train.tiny import tiny_config

__all__ = ['folder', 'nothing_left_running']

HOOKS = {
    'compiling': "import jax; before(jax.stages.Lowered, 'compile', pause)\n"
    'from jax._src import compiler\nbefore(compiler, "compile_or_get_cached", pause)',
    'preparing data': "from bigjax.train import build; before(build, 'load_data', pause)",
    'last evaluation': "from bigjax.train import outcome; before(outcome, 'report_split', pause)",
}
PAUSE = """
def pause(*args, **kwargs):
    open(os.environ['HERE'], 'w').close()
    time.sleep({seconds})
"""


@pytest.mark.parametrize('where', HOOKS)
def test_row_03_sigterm_where_nothing_is_to_be_saved(tmp_path, monkeypatch, where):
    mark = tmp_path / 'here'
    monkeypatch.setenv('HERE', str(mark))
    monkeypatch.setenv('JAX_ENABLE_COMPILATION_CACHE', 'false')
    run = tmp_path / 'run'
    process = start(run, PAUSE.format(seconds=300) + HOOKS[where])
    until(mark.exists)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert 'stopped by SIGTERM with nothing to save' in end(process, 75)
    assert time.monotonic() - asked < 10
    end(start(run), 0)
    end(start(tmp_path / 'whole'), 0)
    assert numbers(run) == numbers(tmp_path / 'whole')


def test_row_03_sigterm_in_an_evaluation(tmp_path, monkeypatch):
    mark = tmp_path / 'here'
    monkeypatch.setenv('HERE', str(mark))
    run = tmp_path / 'run'
    few = '--config.eval.batch_size=8'  # several batches
    hook = (
        PAUSE.format(seconds=1)
        + "from bigjax.data import batches; before(batches, 'eval_batch', pause)"
    )
    process = start(run, hook, few)
    until(mark.exists)
    process.send_signal(signal.SIGTERM)
    assert 'stopped by SIGTERM and saved at step 3' in end(process, 75)
    assert not [row for row in numbers(run) if 'val/loss' in row]
    end(start(run, '', few), 0)
    end(start(tmp_path / 'whole', '', few), 0)
    assert numbers(run) == numbers(tmp_path / 'whole')


LANGUAGE = {
    'model': {'name': 'transformer', 'layers': 1, 'width': 16, 'heads': 2},
    'task': {'name': 'language_model'},
    'data': {'name': 'synthetic', 'kind': 'tokens', 'examples': 64, 'sequence_length': 8},
    'train.steps': 1,
}


@pytest.mark.parametrize(
    ('command', 'hook', 'made'),
    [
        (
            ['eval', '--split=train'],
            "from bigjax.train import outcome; before(outcome, 'replace_file', pause)",
            'run/evaluation/train.json',
        ),
        (
            ['export', '--to=safetensors', '--out=OUT'],
            'import bigjax.interop.export, sys\n'
            "before(sys.modules['bigjax.interop.export'], '_write_json', pause)",
            'out/config.json',
        ),
    ],
    ids=['eval', 'export'],
)
def test_row_03_sigterm_in_eval_and_export(tmp_path, monkeypatch, command, hook, made):
    train_here(tiny_config(**LANGUAGE), tmp_path / 'run')
    mark = tmp_path / 'here'
    monkeypatch.setenv('HERE', str(mark))
    command = [flag.replace('OUT', str(tmp_path / 'out')) for flag in command]
    command.append(f'--run={tmp_path / "run"}')
    process = bigjax(PAUSE.format(seconds=300) + hook, *command)
    until(mark.exists)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert 'bigjax: stopped by SIGTERM with nothing to save' in end(process, 75)
    assert time.monotonic() - asked < 10
    assert not (tmp_path / made).exists()
    assert not (tmp_path / 'out').exists()
    for stray in tmp_path.glob('out.partial'):
        (stray / 'stray').touch()
    end(bigjax('', *command), 0)
    assert json.loads((tmp_path / made).read_text())
    assert not list(tmp_path.glob('out*/stray'))


PATIENT = """
import os, sys, time
from bigjax import cli
from bigjax.train import outcome
whole = outcome.report_split
def report_split(*rest):
    open(f'{os.environ["HERE"]}-{sys.argv[-1]}', 'w').close()
    time.sleep(300)
outcome.report_split = report_split
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize('asked', [0, 1])
def test_row_03_sigterm_to_one_in_the_last_evaluation(folder, asked):
    (folder / 'patient.py').write_text(PATIENT)
    name = f'patient-{asked}'
    mark = folder / f'here-{asked}'
    processes = launch(folder, 2, 2, ['patient.py', *train(name)[2:]], flags, HERE=str(mark))
    until(lambda: len(list(folder.glob(f'{mark.name}-*'))) == 2)
    processes[asked].send_signal(signal.SIGTERM)
    (line,) = lines(ended(processes, 75, 75))
    assert 'stopped by SIGTERM with nothing to save' in line
    ended(launch(folder, 2, 2, train(name), flags), 0, 0)
    assert 'test/loss' in numbers(folder / name)[-1]


@pytest.mark.slow
def test_row_09_a_peer_is_killed(folder):
    few = ['--config.mesh.fsdp=4', '--config.checkpoint.every=1']
    run = folder / 'lost'
    processes = launch(folder, 2, 2, train('lost', *few), flags, SLEEP='.5')
    until(lambda: has_step(run, 3))
    started = time.monotonic()
    processes[1].kill()
    for process in processes:
        process.communicate(timeout=60)
    assert time.monotonic() - started < 30
    assert processes[0].returncode not in (0, 70, 75, 78)
    ended(launch(folder, 2, 2, train('lost', *few), flags), 0, 0)
    assert [row['step'] for row in numbers(run) if 'train/loss' in row] == list(range(1, 9))
    first, second = (row.get('step') for row in read_events(run) if row['event'] == 'start')
    assert first is None
    assert second >= 1


HANG = """
def pause(source, seed, step, *rest):
    if step == 4:
        time.sleep(300)
from bigjax.data import batches; before(batches, 'train_batch', pause)
"""


def test_row_29_a_data_worker_that_hangs(tmp_path):
    asked = time.monotonic()
    errors = end(start(tmp_path / 'run', HANG, '--config.guard.seconds=3'), 1)
    assert time.monotonic() - asked < 90
    assert 'no progress for 3 s: process 0' in errors
    assert 'was waiting for data of step 5; stacks in' in errors
    assert 'in pause' in (tmp_path / 'run' / 'stacks-0.txt').read_text()


def test_row_29_a_data_worker_that_dies(tmp_path):
    hook = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
def pause(source, seed, step, *rest):
    if step == 4:
        with ProcessPoolExecutor(1, get_context('spawn')) as pool:
            pool.submit(os._exit, 3).result()
from bigjax.data import batches; before(batches, 'train_batch', pause)
"""
    asked = time.monotonic()
    (line,) = end(start(tmp_path / 'run', hook), 1).splitlines()
    assert time.monotonic() - asked < 90
    assert line.startswith('bigjax: a process that reads data died over batch 5 (BrokenProcessPool')


def test_row_26_a_corrupt_compilation_cache(tmp_path, monkeypatch):
    cache = tmp_path / 'cache'
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(cache))
    hook = 'import jax; from bigjax import commands as c\n' + (
        "after(c, '_start_jax', lambda: jax.config.update("
        "'jax_persistent_cache_min_compile_time_secs', 0.0))"
    )
    end(start(tmp_path / 'whole', hook), 0)
    files = [path for path in cache.iterdir() if path.name.endswith('-cache')]
    assert files
    for path in files:
        path.write_bytes(b'scribble' + path.read_bytes()[8:])
    errors = end(start(tmp_path / 'run', hook), 0)
    assert 'Error reading persistent compilation cache entry' in errors
    assert numbers(tmp_path / 'run') == numbers(tmp_path / 'whole')


@pytest.mark.slow
@pytest.mark.parametrize('hung', [0, 1])
def test_row_10_a_main_thread_that_hangs(folder, hung):
    (folder / 'hang.py').write_text(f"""
import os, sys, time
from bigjax import cli
from bigjax.train import loop
whole = loop.batches.prefetched
def prefetched(make, start, *rest, **named):
    for step, batch in enumerate(whole(make, start, *rest, **named)):
        if step == 4 and '--process_id={hung}' in sys.argv:
            time.sleep(300)
        yield batch
loop.batches.prefetched = prefetched
sys.exit(cli.main(sys.argv[1:]))
""")
    name = f'hung-{hung}'
    command = ['hang.py', *train(name, '--config.guard.seconds=5')[2:]]
    processes = launch(folder, 2, 2, command, flags)
    errors = ended(processes, 1, 1)
    assert lines(errors), '\n'.join(errors)
    (line,) = lines(errors)
    assert line.startswith(f'bigjax: no progress for 5 s: process {hung} (')
    assert 'was waiting for data of step 5; stacks in' in line
    for index in range(2):
        stacks = (folder / name / f'stacks-{index}.txt').read_text()
        assert ('in prefetched' in stacks) == (index == hung)


@pytest.mark.slow
def test_row_11_a_slow_rank(folder):
    (folder / 'slow.py').write_text("""
import sys, time
from bigjax import cli
from bigjax.data import batches
whole = batches.train_batch
def train_batch(*rest):
    time.sleep(.2 if '--process_id=1' in sys.argv else 0)
    return whole(*rest)
batches.train_batch = train_batch
sys.exit(cli.main(sys.argv[1:]))
""")
    ended(launch(folder, 2, 2, ['slow.py', *train('slow')[2:]], flags), 0, 0)
    found = [row for row in read_events(folder / 'slow') if row['event'] == 'straggler']
    assert found
    assert all(list(row['details']['data_wait_seconds']) == ['1'] for row in found)
