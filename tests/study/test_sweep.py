"""Sweeps over a stand-in for `bigjax train` that behaves by its seed; at the end, the real one.

Its run folders are what the real one leaves, in as far as the ledger reads them.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bigjax import cli, config, config_file
from bigjax.errors import ConfigError, DataError, Preempted
from bigjax.study import jobs, ledger, sweep
from bigjax.study.points import grid
from bigjax.train import lock
from bigjax.train.writers import read_events

ROOT = Path(__file__).parents[2]
CONFIG = """
def get_config(arg='full'):
    return {
        'model': {'name': 'mlp', 'widths': (8,)}, 'task': 'classification', 'data': 'digits',
        'optimizer': 'sgd', 'train': {'steps': 6, 'batch_size': 64, 'log_every': 2},
        'eval': {'every': 6}, 'checkpoint': {'every': 6},
    }
"""

# 70: diverges; 75: is preempted once; 78: an error; 90 and above: takes its time.
TRAINER = """
import json, pathlib, signal, sys, time

flags = dict(word.split('=', 1) for word in sys.argv[1:])
folder, seed = pathlib.Path(flags['--workdir']), int(flags.get('--config.seed', 0))
events, now = folder / 'events.jsonl', time.time()

def note(file, **row):
    with (folder / file).open('a') as out:
        print(json.dumps({'time': time.time(), 'attempt': 1, **row}), file=out)

signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
(folder / 'config.json').write_text(json.dumps({'seed': seed}))
print('hello from', seed, flush=True)
work = {'examples': 64, 'tokens': None, 'flops': 10, 'formula': 'f', 'params': 5, 'steps': 6}
note('events.jsonl', event='start', details={**work, 'params_nonembedding': 4, 'seconds': 1})
if seed == 78:
    sys.exit('bigjax: bad value\\n')
if seed == 75 and not (folder / 'saved').exists():
    (folder / 'saved').touch()
    sys.exit(75)
note('metrics.jsonl', step=6, **{'train/loss': seed + 0.5, 'val/loss': seed + 1.0})
if seed == 70:
    note('metrics.jsonl', step=7, **{'train/loss': None, 'nonfinite': {'train/loss': 'nan'}})
    note('events.jsonl', event='diverged', step=7, details={})
    sys.exit(70)
if seed >= 90:
    time.sleep(60)
note('events.jsonl', event='done', step=6, details={})
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The current folder, with a config file and the stand-in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'config.py').write_text(CONFIG)
    (tmp_path / 'trainer.py').write_text(TRAINER)
    monkeypatch.setattr(sweep, 'TRAIN', (sys.executable, '-IS', str(tmp_path / 'trainer.py')))
    monkeypatch.setattr(sweep, 'POLL_SECONDS', 0.02)
    return tmp_path


def planned(*seeds: int) -> list[jobs.Job]:
    return jobs.plan([{'seed': seed} for seed in seeds], Path())


def events(study: Path) -> list[tuple[str, int]]:
    path = study / 'runs.d' / 'ledger.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    return [(row['event'], row['overrides']['seed']) for row in map(json.loads, lines)]


def run(seeds, **options):
    return sweep.run(planned(*seeds), Path('runs.d'), **options)


# Ids


def test_an_id_is_that_of_the_resolved_config_whatever_the_order_of_keys(study):
    one, two = {'seed': 3, 'optimizer.learning_rate': 0.1}, {'optimizer.learning_rate': 0.1}
    (a,) = jobs.plan([one], Path())
    (b,) = jobs.plan([{**two, 'seed': 3}], Path())
    (c,) = jobs.plan([two], Path(), [('seed', '3')])
    assert a.id == b.id == c.id
    (default,) = jobs.plan([{}], Path())
    (explicit,) = jobs.plan([{'seed': 0, 'model.widths': (8,)}], Path())
    assert default.id == explicit.id != a.id
    assert re.fullmatch('[0-9a-f]{10}', a.id)


def test_ids_stay_what_they_were_when_a_field_is_added(study):
    """Finished runs are found again by them: only what is not a default is hashed."""
    fixed = config.resolve(
        {
            'model': 'mlp',
            'task': 'regression',
            'data': 'x',
            'train': {'steps': 1, 'batch_size': 128},
            'optimizer': {'name': 'sgd', 'schedule': {'warmup': 3}, 'nesterov': False},
            'seed': 0,
        }
    )
    text = (
        '{"data":{"name":"x"},"model":{"name":"mlp"},"optimizer":{"name":"sgd","nesterov":false,'
        '"schedule":{"warmup":"3 steps"}},"task":{"name":"regression"},"train":{"steps":"1 steps"}}'
    )
    found = subprocess.run(['sha256sum'], input=text, capture_output=True, text=True, check=True)
    assert jobs.run_id(fixed) == found.stdout[:10]


def test_the_same_point_twice_is_one_run_and_a_bad_one_is_named(study):
    assert len(planned(1, 2, 1)) == 2
    with pytest.raises(ConfigError, match=r"point 1 \({'seed': -1}\): bad value for config.seed"):
        planned(1, -1)
    with pytest.raises(ConfigError, match='no config file'):
        jobs.plan([{'config': 'other.py'}], Path())


def test_what_a_run_is_told_resolves_to_the_config_of_its_id(study):
    points = grid(
        {
            'optimizer.learning_rate': np.logspace(-2, 0, 2),
            'optimizer.schedule.warmup': ['5%', 10],
            'model.widths': [(8, 8)],
            'data.splits': [{'train': 'train[:80%]'}],
            'task.kind': ['multiclass'],
            'optimizer.clip': [None],
        }
    )
    for job in jobs.plan(points, Path()):
        first, _, *flags = job.arguments(Path('s'))
        pairs = [flag.removeprefix('--config.').split('=', 1) for flag in flags]
        again = config_file.load(
            first.removeprefix('--config='), [(key, text) for key, text in pairs]
        )
        assert jobs.run_id(again) == job.id
        assert json.loads(json.dumps(job.overrides)) == job.overrides
        assert again.optimizer.clip is None


def test_points_may_name_other_configs(study):
    (study / 'experiment').mkdir()
    (study / 'experiment' / 'small.py').write_text(CONFIG.replace('(8,)', '(4,)'))
    points = [{'config': 'small.py:full'}, {'config': 'config.py'}]
    first, second = jobs.plan(points, study / 'experiment')
    assert first.config == f'{study}/experiment/small.py:full'
    assert second.config == 'config.py'
    assert first.id != second.id


# Running


def test_results_are_recorded_and_not_made_again(study):
    rows = run([1, 2, 70], slots=2)
    assert [row['event'] for row in rows] == ['finished', 'finished', 'diverged']
    assert rows[1] | {'time': 0, 'seconds': 0, 'id': ''} == {
        'event': 'finished', 'id': '', 'time': 0, 'config': 'config.py', 'overrides': {'seed': 2},
        'step': 6, 'seconds': 0, 'params': 5, 'params_nonembedding': 4, 'tokens': None,
        'examples': 6 * 64, 'flops': 60, 'formula': 'f', 'main': 'val/loss',
        'metrics': {'train/loss': 2.5, 'val/loss': 3.0},
    }  # fmt: skip
    assert rows[1]['seconds'] >= 1
    assert rows[2]['metrics']['train/loss'] != rows[2]['metrics']['train/loss']  # nan
    before = events(study)
    starts, ends = [('started', seed) for seed in (1, 2, 70)], [('finished', 1), ('finished', 2)]
    assert sorted(before) == sorted([*starts, *ends, ('diverged', 70)])
    run([1, 2, 70, 3])
    assert events(study)[len(before) :] == [('started', 3), ('finished', 3)]


def test_failures_are_reported_and_retried_on_request(study, capsys):
    text = study / 'said.txt'
    with text.open('w') as file:
        rows = run([78, 1], console=Console(file=file))
    assert rows[0]['event'] == 'failed'
    assert (rows[0]['exit_code'], rows[0]['error']) == (1, 'bigjax: bad value')
    said = text.read_text()
    assert re.search(r'1/2  \w{10}  seed=78  failed  bigjax: bad value', said)
    assert '2 runs: 1 failed, 1 done' in said
    run([78, 1])
    assert events(study).count(('started', 78)) == 1
    run([78, 1], retry=True)
    assert events(study).count(('started', 78)) == 2
    assert events(study).count(('started', 1)) == 1


@pytest.mark.parametrize(('seed', 'why'), [(78, 'failed: bigjax: bad value'), (70, 'diverged: ')])
def test_who_needs_every_result_is_told_of_one_that_lacks(study, seed, why):
    assert [row['event'] for row in sweep.finish(planned(1, 2), Path('runs.d'))] == ['finished'] * 2
    with pytest.raises(DataError, match=why):
        sweep.finish(planned(1, seed), Path('runs.d'))


def test_a_run_that_diverged_may_be_a_result(study):
    (row,) = sweep.finish(planned(70), Path('runs.d'), results=ledger.RESULTS)
    assert row['event'] == 'diverged'


def test_a_preempted_run_goes_on(study):
    run([75, 1])
    assert [event for event, seed in events(study) if seed == 75] == [
        'started', 'stopped', 'started', 'finished',
    ]  # fmt: skip


def test_ctrl_c_stops_children_and_the_next_call_goes_on(study, monkeypatch):
    def interrupt():
        while len(events(study)) < 4:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Preempted):
        run([1, 90, 91, 2], slots=2)
    assert events(study)[-2:] == [('stopped', 90), ('stopped', 91)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.setattr(sweep, 'TRAIN', (*sweep.TRAIN[:2], str(study / 'quick.py')))
    (study / 'quick.py').write_text(TRAINER.replace('sleep(60)', 'sleep(0)'))
    rows = run([1, 90, 91, 2], slots=2)
    assert [row['event'] for row in rows] == ['finished'] * 4
    starts = [seed for event, seed in events(study) if event == 'started']
    assert sorted(starts) == [1, 2, 90, 90, 91, 91]


def test_a_run_that_another_holds_is_left_to_it_and_its_result_taken_in(study):
    (job,) = planned(5)
    folder = job.folder(Path('runs.d'))
    with lock.held(folder):
        assert lock.is_held(folder)
        other = threading.Thread(target=run, args=([5, 6],))
        other.start()
        while ('finished', 6) not in events(study):
            time.sleep(0.05)
        subprocess.run([*sweep.TRAIN, *job.arguments(Path('runs.d'))], check=True)
    other.join()
    assert not lock.is_held(folder)
    assert [event for event, seed in events(study) if seed == 5] == ['finished']


def test_no_jobs_take_in_what_ran_elsewhere(study):
    for job in planned(1, 75):
        job.folder(Path('runs.d')).mkdir(parents=True)
        subprocess.run([*sweep.TRAIN, *job.arguments(Path('runs.d'))], check=False)
    rows = run([1, 75, 3], slots=0)
    assert events(study) == [('finished', 1)]
    assert [row['overrides'] for row in rows] == [{'seed': 1}]


def test_each_job_has_its_part_of_the_gpus(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,1,2,5')
    parts = [sweep._environment(slot, 2)['CUDA_VISIBLE_DEVICES'] for slot in range(2)]
    assert parts == ['0,2', '1,5']
    shared = sweep._environment(6, 8)
    assert shared == {'CUDA_VISIBLE_DEVICES': '2', 'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.45'}
    assert sweep._environment(0, 1) == {}
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert sweep._environment(0, 2) == {}


# The ledger


def test_two_writers_share_a_ledger(tmp_path):
    code = (
        'import sys; from pathlib import Path; from bigjax.study import ledger\n'
        'for i in range(200): ledger.append(Path(sys.argv[1]), "started", f"{sys.argv[2]}{i}",'
        ' text="x" * 3000)'
    )
    writers = [subprocess.Popen([sys.executable, '-c', code, str(tmp_path), name]) for name in 'ab']
    assert [writer.wait() for writer in writers] == [0, 0]
    assert set(ledger.read(tmp_path)) == {f'{name}{i}' for name in 'ab' for i in range(200)}


def test_a_torn_line_is_cut_off(tmp_path):
    ledger.append(tmp_path, 'started', 'a')
    with (tmp_path / 'ledger.jsonl').open('a') as file:
        file.write('{"event": "fin')
    assert set(ledger.read(tmp_path)) == {'a'}
    ledger.append(tmp_path, 'started', 'b')
    assert set(ledger.read(tmp_path)) == {'a', 'b'}


# The real trainer


def test_sweep_from_the_command_line(study, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.chdir(study)
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    (study / 'sweep.py').write_text(
        'def points():\n'
        "    return [{'seed': 0}, {'optimizer.learning_rate': 1e30}, {'optimizer.name': 'sdg'}]\n"
    )
    flags = ['--workdir=out', '--config.model.widths=4']
    assert cli.main(['sweep', '.', *flags, '--dry-run']) == 0
    assert capsys.readouterr().out.count(' waiting ') == 3
    assert not (study / 'out').exists()
    assert cli.main(['sweep', '.', *flags, '--jobs=2']) == 1
    done, diverged, failed = ledger.read(Path('out')).values()
    assert (done['event'], diverged['event'], failed['event']) == (
        'finished', 'diverged', 'failed',
    )  # fmt: skip
    assert done['params'] == 64 * 4 + 4 + 4 * 10 + 10
    assert done['examples'] == 6 * 64
    assert 0 < done['metrics']['val/loss'] < 5
    assert failed['exit_code'] == 78
    assert "unknown config.optimizer.name 'sdg'" in failed['error']
    assert [row['event'] for row in read_events(Path('out/runs') / done['id'])].count('start') == 1


@pytest.mark.slow
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_that_is_killed_goes_on(study, monkeypatch, how):
    """Four real runs, two at a time; runs of a killed sweep live on, and are taken in."""
    steps = {'train.steps': 300, 'train.log_every': 1, 'checkpoint.every': 50}
    points = [{**steps, 'seed': seed} for seed in range(4)]
    (study / 'sweep.py').write_text(f'def points():\n    return {points}\n')
    command = [sys.executable, '-m', 'bigjax.cli', 'sweep', '.', '--workdir=out', '--jobs=2']
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    first = subprocess.Popen(command, env=environment)

    def finished() -> list[str]:
        return [run for run, row in ledger.read(Path('out')).items() if row['event'] == 'finished']

    while len(finished()) < 1 or not list(Path('out/runs').glob('*/metrics.jsonl'))[2:]:
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(how)
    assert first.wait() == (75 if how == signal.SIGTERM else -signal.SIGKILL)
    done = {run: read_events(Path('out/runs') / run) for run in finished()}
    assert 1 <= len(done) < 4
    assert subprocess.run(command, env=environment).returncode == 0
    rows = ledger.read(Path('out'))
    assert [row['event'] for row in rows.values()] == ['finished'] * 4
    for run, before in done.items():
        assert read_events(Path('out/runs') / run) == before
    lines = (study / 'out' / 'ledger.jsonl').read_text().splitlines()
    ends = [json.loads(line)['id'] for line in lines if '"finished"' in line]
    assert sorted(ends) == sorted(rows)  # each once
    assert {row['step'] for row in rows.values()} == {300}
    rows = sweep.run(jobs.plan(points, Path()), Path('out'))
    assert (study / 'out' / 'ledger.jsonl').read_text().splitlines() == lines
