import io
import logging
import re

import pytest
from rich.console import Console

from bigjax.train.progress import by_split, duration, final_table, logging_to, number, progress


class FakeClock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def plain():
    return Console(file=io.StringIO(), force_terminal=False)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)


def written(console):
    return console.file.getvalue()


def test_a_plain_line_has_step_metrics_throughput_and_time_left(plain, clock):
    with progress(1120, console=plain, clock=clock) as show:
        show.update(100)  # after compiling; only from here is a step a step
        clock.now += 20.0
        show.update(
            300,
            {
                'train/learning_rate': 0.001,
                'train/accuracy': 0.5,
                'train/loss': 0.12344,
                'perf/examples_per_second': 4512.3,
            },
        )
    # 200 steps in 20 s: 820 more take 82 s
    assert written(plain) == (
        'step 300/1120  train/loss 0.1234  train/accuracy 0.5  4,512 examples/s  eta 1:22\n'
    )


def test_tokens_are_preferred_to_examples(plain, clock):
    metrics = {'x': 1, 'perf/examples_per_second': 2, 'perf/tokens_per_second': 1024}
    with progress(10, console=plain, clock=clock) as show:
        show.update(1, metrics)
    assert written(plain) == 'step 1/10  x 1  1,024 tokens/s\n'


def test_plain_lines_come_at_a_bounded_rate_and_lose_no_metric(plain, clock):
    with progress(100, console=plain, every=5.0, clock=clock) as show:
        for step in range(1, 101):
            clock.now += 0.5
            show.update(step, {'train/loss': step, **({'val/loss': 7} if step == 13 else {})})
    lines = written(plain).splitlines()
    steps = [int(re.match(r'step (\d+)/100', line)[1]) for line in lines]
    assert steps == [1, 11, 13, 21, 31, 41, 51, 61, 71, 81, 91, 100]
    assert lines[steps.index(13)] == 'step 13/100  val/loss 7'  # named by its own step
    assert sum('val/loss' in line for line in lines) == 1


def test_what_was_not_yet_shown_is_shown_at_the_end(plain, clock):
    with progress(100, console=plain, clock=clock) as show:
        show.update(1, {'train/loss': 1})
        show.update(2, {'val/loss': 2})  # and the run stops early
    assert written(plain).splitlines()[1].startswith('step 2/100  val/loss 2')


def test_a_resumed_run_counts_only_its_own_steps(plain, clock):
    with progress(1000, start_step=900, console=plain, clock=clock) as show:
        show.update(901)
        clock.now += 10
        show.update(911, {'x': 0})
    assert written(plain).endswith('eta 1:29\n')


def test_a_terminal_gets_a_bar_with_the_latest_of_everything(terminal, clock):
    with progress(200, console=terminal, clock=clock) as show:
        show.update(1, {'val/accuracy': 0.25, 'val/loss': 2.0})
        clock.now += 9.9
        show.update(100, {'train/loss': 0.125, 'perf/step_seconds': 0.1})
    *_, bar, metrics, _ = written(terminal).split('\n')
    assert 'step 100/200' in bar
    assert bar.rstrip().endswith('100 ms/step  eta 0:10')
    assert '━━━' in bar
    assert metrics.split('\r')[-1].split('  ')[:3] == [
        'val/loss 2', 'train/loss 0.125', 'val/accuracy 0.25',
    ]  # fmt: skip


def test_log_file_gets_the_plain_lines_whatever_the_console(tmp_path, terminal, clock):
    with (
        logging_to(tmp_path, terminal),
        progress(100, console=terminal, clock=clock) as show,
    ):
        show.update(1, {'train/loss': 0.5})
        final_table({'test/loss': 0.25}, terminal)
    stamp = r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} I '
    lines = (tmp_path / 'log.txt').read_text().splitlines()
    assert re.fullmatch(stamp + r'step 1/100  train/loss 0\.5', lines[0])
    assert re.fullmatch(stamp + r'loss +0\.25', lines[2])
    assert 'step 1/100  train/loss' not in written(terminal)


def test_messages_go_to_console_and_file_and_are_not_markup(tmp_path, plain):
    with logging_to(tmp_path, plain):
        logging.getLogger('bigjax.anywhere').info('class [red]%s[/red] ' + 'x' * 200, '[/oops]')
        logging.getLogger('bigjax.data').warning('odd')
    logging.getLogger('bigjax').info('nobody listens any more')
    console = 'class [red][/oops][/red] ' + 'x' * 200 + '\nwarning: odd\n'
    assert written(plain) == console
    logged = (tmp_path / 'log.txt').read_text().splitlines()
    assert logged[0].endswith(' I ' + console.split('\n')[0])
    assert logged[1].endswith(' W odd')
    assert len(logged) == 2


def test_attempts_add_to_one_log_file(tmp_path, plain):
    for text in ('first', 'second'):
        with logging_to(tmp_path, plain):
            logging.getLogger('bigjax').info(text)
    assert len((tmp_path / 'log.txt').read_text().splitlines()) == 2


def test_a_process_that_does_not_lead_says_nothing(tmp_path, capsys):
    quiet = Console(quiet=True)
    with logging_to(None, quiet), progress(2, console=quiet) as show:
        show.update(1, {'x': 1})
        logging.getLogger('bigjax').warning('unseen')
    assert capsys.readouterr() == ('', '')


RESULTS = {
    'train/loss': 0.01,
    'train/learning_rate': 0.001,
    'val/loss': 0.03,
    'test/loss': 0.05,
    'test/accuracy': 0.98611,
    'perf/mfu': 0.4,
}


def test_final_table_as_aligned_text(plain):
    final_table(RESULTS, plain)
    assert written(plain).splitlines() == [
        '               train         val        test',
        'loss            0.01        0.03        0.05',
        'accuracy                              0.9861',
    ]


def test_final_table_on_a_terminal(terminal):
    final_table(RESULTS, terminal)
    rows = [line.split() for line in written(terminal).splitlines()]
    assert ['train', 'val', 'test'] in rows
    assert ['loss', '0.01', '0.03', '0.05'] in rows
    assert ['accuracy', '0.9861'] in rows


def test_by_split_keeps_training_metrics_if_nothing_was_evaluated():
    splits, rows = by_split({'train/loss': 1.0, 'train/norm': 2.0})
    assert splits == ['train']
    assert rows == {'loss': {'train': 1.0}, 'norm': {'train': 2.0}}


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (0.123449, '0.1234'),
        (3e-5, '3e-05'),
        (12, '12'),
        (45120.4, '45,120'),
        (float('nan'), 'nan'),
        (float('inf'), 'inf'),
    ],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ('seconds', 'text'), [(0, '0:00'), (31.6, '0:32'), (3599.7, '1:00:00'), (180_000, '50:00:00')]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
