import json
import math
import sys
import time
import types

import numpy as np
import pytest

from bigjax.errors import ConfigError, DataError
from bigjax.train.writers import (
    Writer,
    columns,
    open_sinks,
    read_events,
    read_metrics,
    replace_file,
)


def strict(line):
    def refuse(constant):
        raise AssertionError(f'{constant} is not JSON')

    return json.loads(line, parse_constant=refuse)


def steps(workdir):
    return [row['step'] for row in read_metrics(workdir)]


class FailingSink:
    """Keeps what it gets, and fails from its second write on."""

    def __init__(self):
        self.rows = []
        self.calls = 0

    def write(self, step, metrics):
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError('no route to host')
        self.rows.append((step, dict(metrics)))

    def close(self):
        raise RuntimeError('still none')


def test_a_line_is_on_disk_before_the_call_returns(tmp_path):
    with Writer(tmp_path) as writer:
        writer.metrics(3, {'train/loss': np.float32(0.1)})
        (row,) = read_metrics(tmp_path)  # while the file is still open
    assert row['step'] == 3
    assert row['attempt'] == 1
    assert row['train/loss'] == float(np.float32(0.1))  # to the last bit
    assert isinstance(row['time'], float)


def test_values_that_are_not_finite_are_strict_json_and_come_back(tmp_path):
    values = {'a': math.nan, 'b': math.inf, 'c': -math.inf, 'd': 1.5}
    with Writer(tmp_path) as writer:
        writer.metrics(0, values)
        writer.event('diverged', 0, loss=math.nan, path=tmp_path, nested={'x': [np.float32(2)]})
    row = strict((tmp_path / 'metrics.jsonl').read_text())
    assert row['a'] is row['b'] is row['c'] is None
    event = strict((tmp_path / 'events.jsonl').read_text())
    assert event['details'] == {'loss': 'nan', 'path': str(tmp_path), 'nested': {'x': [2.0]}}
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row['a'])
    assert (row['b'], row['c'], row['d']) == (math.inf, -math.inf, 1.5)


def test_events_carry_attempt_step_and_details(tmp_path):
    for attempt in (1, 2):
        with Writer(tmp_path) as writer:
            assert writer.attempt == attempt
            writer.event('start')
            writer.event('save', 10, seconds=0.5)
    rows = read_events(tmp_path)
    assert [(row['event'], row['attempt']) for row in rows] == [
        ('start', 1), ('save', 1), ('start', 2), ('save', 2),
    ]  # fmt: skip
    assert 'step' not in rows[0]
    assert rows[1]['step'] == 10
    assert rows[1]['details'] == {'seconds': 0.5}


def test_a_resumed_run_has_neither_gap_nor_duplicate(tmp_path):
    with Writer(tmp_path) as writer:
        writer.event('start')
        for step in range(8):
            writer.metrics(step, {'train/loss': step})
    with Writer(tmp_path, restored_step=4) as writer:
        assert steps(tmp_path) == [0, 1, 2, 3, 4]
        for step in range(5, 10):
            writer.metrics(step, {'train/loss': step})
    assert steps(tmp_path) == list(range(10))
    assert [row['attempt'] for row in read_metrics(tmp_path)] == [1] * 5 + [2] * 5
    (event,) = [row for row in read_events(tmp_path) if row['event'] == 'lost_work']
    assert (event['details']['of_attempt'], event['details']['lines']) == (1, 3)


def test_lost_work_is_what_steps_took_since_what_was_restored(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, 'time', lambda: now[0])

    def attempt(restored, steps):
        now[0] += 1000
        with Writer(tmp_path, restored) as writer:
            writer.event('start', restored, seconds=5)
            for step in steps:
                now[0] += 10
                writer.metrics(step, {'train/loss': 1})
                if step % 2 == 0:
                    now[0] += 1
                    writer.event('steps', step, seconds=10)
                    writer.event('save', step, seconds=1)

    attempt(None, [1, 2, 3, 4, 5])
    attempt(4, [5, 6, 7, 8])
    attempt(2, [3])  # the later ones were bad
    lost = [row for row in read_events(tmp_path) if row['event'] == 'lost_work']
    assert [(row['attempt'], row['step']) for row in lost] == [(2, 4), (3, 2), (3, 2)]
    assert [(row['details']['of_attempt'], row['details']['seconds']) for row in lost] == [
        (1, 10),
        (1, 20),
        (2, 40),
    ]


def test_a_run_that_restored_nothing_starts_its_metrics_afresh(tmp_path):
    with Writer(tmp_path) as writer:
        writer.event('start')
        writer.metrics(0, {'train/loss': 1})
    with Writer(tmp_path, restored_step=None):
        assert steps(tmp_path) == []
    assert read_events(tmp_path)[0]['event'] == 'start'  # history stays


def test_a_rewrite_never_touches_the_old_file(tmp_path, monkeypatch):
    path, link = tmp_path / 'metrics.jsonl', tmp_path / 'link'
    path.write_text('old')
    link.hardlink_to(path)
    replace_file(path, b'new')
    assert (path.read_text(), link.read_text()) == ('new', 'old')
    monkeypatch.setattr('os.fsync', lambda _: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'):
        replace_file(path, b'newer')
    assert path.read_text() == 'new'


@pytest.mark.parametrize('torn', [b'{"step": 2, "ti', b'\x00\x00\x00', b'{"step": 2}'])
def test_a_torn_last_line_is_tolerated_and_then_removed(tmp_path, torn):
    with Writer(tmp_path) as writer:
        writer.event('start')
        writer.metrics(0, {'x': 0})
        writer.metrics(1, {'x': 1})
    for name in ('metrics.jsonl', 'events.jsonl'):
        with (tmp_path / name).open('ab') as file:
            file.write(torn)
    assert steps(tmp_path) == [0, 1]
    assert len(read_events(tmp_path)) == 1
    with Writer(tmp_path, restored_step=1) as writer:
        writer.metrics(2, {'x': 2})
    assert steps(tmp_path) == [0, 1, 2]
    assert len((tmp_path / 'metrics.jsonl').read_bytes().splitlines()) == 3


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 0}\n{"step": \n{"step": 2}\n')
    with pytest.raises(DataError, match=r'metrics.jsonl:2: not JSON .* delete that line'):
        read_metrics(tmp_path)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(DataError, match='expected the folder of a run'):
        read_metrics(tmp_path)


def test_columns_give_each_metric_its_own_steps(tmp_path):
    with Writer(tmp_path) as writer:
        writer.metrics(1, {'train/loss': 3.0})
        writer.metrics(2, {'train/loss': math.nan, 'val/loss': 4.0})
    series = columns(read_metrics(tmp_path))
    assert set(series) == {'train/loss', 'val/loss'}
    np.testing.assert_array_equal(series['train/loss'][0], [1, 2])
    np.testing.assert_array_equal(series['train/loss'][1], [3, np.nan])
    np.testing.assert_array_equal(series['val/loss'], [[2], [4]])


def test_a_process_that_does_not_lead_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Writer(None) as writer:
        writer.metrics(0, {'x': 1})
        writer.event('start')
    assert list(tmp_path.iterdir()) == []


def test_a_sink_that_fails_is_dropped_once_and_the_run_goes_on(tmp_path, caplog):
    failing, healthy = FailingSink(), FailingSink()
    healthy.write = lambda step, metrics: healthy.rows.append((step, dict(metrics)))
    healthy.close = lambda: None
    with Writer(tmp_path, sinks={'bad': failing, 'good': healthy}) as writer:
        for step in range(5):
            writer.metrics(step, {'x': step})
    assert steps(tmp_path) == list(range(5))
    assert failing.calls == 2
    assert healthy.rows == [(step, {'x': float(step)}) for step in range(5)]
    assert [row['details']['sink'] for row in read_events(tmp_path)] == ['bad']
    assert len([record for record in caplog.records if 'no route' in record.getMessage()]) == 1


def test_a_sink_that_fails_to_close_does_not_stop_the_run(tmp_path, caplog):
    with Writer(tmp_path, sinks={'bad': FailingSink()}) as writer:
        writer.metrics(0, {'x': 1})
    assert 'still none' in caplog.text
    assert writer._metrics.closed


@pytest.mark.parametrize(('name', 'package'), [('tensorboard', 'tensorboardX'), ('wandb', 'wandb')])
def test_a_sink_whose_package_is_missing_says_what_to_install(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf'pip install bigjax\[{name}\]'):
        open_sinks([name], tmp_path, None, {})


def test_tensorboard_gets_scalars_and_forgets_steps_past_the_restored(tmp_path, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, key, value, step):
            calls.append((key, value, step))

        def close(self):
            calls.append('closed')

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, 'tensorboardX', module)
    sinks = open_sinks(['tensorboard'], tmp_path, 6, {})
    with Writer(tmp_path, 6, sinks) as writer:
        writer.metrics(7, {'val/loss': 0.5})
    assert calls == [(str(tmp_path / 'tensorboard'), 7), ('val/loss', 0.5, 7), 'closed']


class FakeWandb:
    """Stands for the module and for the run that it opens."""

    def __init__(self):
        self.inits, self.logged = [], []

    def init(self, **settings):
        self.inits.append(settings)
        return self

    def define_metric(self, *_, **__):
        pass

    def log(self, row):
        self.logged.append(row)

    def finish(self):
        pass


def test_wandb_attempts_share_one_run(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    for restored in (None, 1):
        with Writer(
            tmp_path, restored, open_sinks(['wandb'], tmp_path, restored, {'seed': 1})
        ) as w:
            w.metrics(2, {'val/loss': 0.5})
    first, second = wandb.inits
    assert first['id'] == second['id']
    assert first['config'] == {'seed': 1}
    assert wandb.logged == [{'step': 2, 'val/loss': 0.5}] * 2


def test_a_sink_that_does_not_open_is_left_out(tmp_path, monkeypatch, caplog):
    def init(**_):
        raise RuntimeError('not logged in')

    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
    assert open_sinks(['wandb'], tmp_path, None, {}) == {}
    assert 'not logged in' in caplog.text
