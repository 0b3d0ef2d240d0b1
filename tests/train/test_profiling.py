import gzip
import json
import re

import pytest

from bigjax.errors import ConfigError
from bigjax.train import profiling
from bigjax.train.loop import train
from bigjax.train.profiling import Operation
from bigjax.train.writers import read_events
from tests.train.test_loop import numbers
from tests.train.tiny import tiny_config


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """The same run with a trace of steps 3 and 4, and without."""
    folder = tmp_path_factory.mktemp('runs')
    train(tiny_config(), folder / 'traced', profiled=range(2, 4))
    train(tiny_config(), folder / 'plain')
    return folder


def test_the_trace_holds_the_steps_asked_for(runs):
    (trace,) = runs.glob('traced/profile/plugins/profile/*/*.trace.json.gz')
    assert len(list(trace.parent.glob('*.xplane.pb'))) == 1
    events = json.loads(gzip.decompress(trace.read_bytes()))['traceEvents']
    steps = [event['args']['step_num'] for event in events if event.get('name') == 'train']
    assert steps == ['3', '4']
    assert not (runs / 'plain' / 'profile').exists()


def test_a_trace_changes_no_number(runs):
    assert numbers(runs / 'traced') == numbers(runs / 'plain')
    events = [row['event'] for row in read_events(runs / 'traced')]
    assert [row['event'] for row in read_events(runs / 'plain')] == [
        event for event in events if event != 'profile'
    ]


def test_the_summary_adds_up(runs):
    first, head, *rows = (runs / 'traced' / 'profile' / 'summary.txt').read_text().splitlines()
    assert first.startswith('steps 3 to 4: ')
    assert head.split()[-4:] == ['part', 'of', 'the', 'step']
    in_operations = float(re.search(r'in operations (\S+) ms', first)[1])
    spent, shares, calls, parts = zip(*(row.split(maxsplit=3) for row in rows), strict=True)
    assert sum(map(float, spent)) <= in_operations * 1.01
    assert [float(x) for x in spent] == sorted(map(float, spent), reverse=True)
    assert sum(float(share[:-1]) for share in shares) <= 101
    assert any('read_out' in part for part in parts)  # in the words of the model
    assert any(part.endswith(', backward') for part in parts)
    assert {float(count) % 4 for count in calls if float(count) >= 8} <= {0.0}  # of 8 devices


def test_time_inside_a_loop_is_not_counted_twice():
    events = [(0, 100, 'while'), (10, 30, 'dot'), (15, 5, 'add'), (50, 20, 'dot'), (100, 7, 'copy')]
    assert sorted(profiling._without_inner(events)) == [
        Operation('add', 5),
        Operation('copy', 7),
        Operation('dot', 20),
        Operation('dot', 25),
        Operation('while', 50),
    ]


@pytest.mark.parametrize(
    ('path', 'part'),
    [
        (
            'jit(train_step)/transpose(jvp(Transformer))/block_11/block_11._mlp/mlp/up/dot_general',
            'Transformer/block_*/mlp/up/dot_general, backward',
        ),
        ('jit(train_step)/jvp(MLP)/hidden_0/dot_general', 'MLP/hidden_*/dot_general'),
        ('jit(train_step)/add_any', 'add_any'),
    ],
)
def test_instructions_are_named_by_the_model(path, part):
    program = f'  ROOT %fusion.3 = f32[4]{{0}} add(%a, %b), metadata={{op_name="{path}" id=3}}\n'
    assert profiling._parts(program) == {'fusion.3': part}


@pytest.mark.parametrize('text', ['3', '3:3', '5:2', '-1:2', 'a:b', '1:2:3', ''])
def test_bad_steps_are_refused(text):
    with pytest.raises(ConfigError, match=r'--profile: expected START:STOP, such as 10:13, got'):
        profiling.steps_of(text)


def test_steps_that_the_run_does_not_take_are_refused(tmp_path):
    assert profiling.steps_of('2:9') == range(2, 9)
    with pytest.raises(ConfigError, match=r'expected steps between 0 and 6, .*, got 2:9'):
        train(tiny_config(), tmp_path, profiled=range(2, 9))
    with pytest.raises(ConfigError, match='expected steps between 3 and 6'):
        profiling.check_steps(range(2, 4), 3, 6)
