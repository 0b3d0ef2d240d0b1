import pytest

from bigjax.train import clock
from bigjax.train.clock import Clock, Work


@pytest.fixture
def now(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(clock.time, 'perf_counter', lambda: now[0])
    return now


def lap(now, kind):
    """Four seconds of four steps, after five of start-up, with a pause of five in between."""
    measured = Clock(Work(examples=8, tokens=80, flops=3 * 10**14, kind=kind, devices=2), now[0])
    now[0] += 5
    assert measured.lap(10) == {}  # the first step compiles
    with measured.paused():
        now[0] += 5
    with measured.waiting():
        now[0] += 1
    now[0] += 3
    return measured.lap(14)


def test_pauses_are_left_out(now):
    assert lap(now, 'cpu') == {
        'step_seconds': 1.0,
        'data_wait_seconds': 0.25,
        'examples_per_second': 8.0,
        'tokens_per_second': 80.0,
        'flops_per_second': 3e14,
        'goodput': pytest.approx(4 / 14),
    }


def test_mfu_is_of_the_peak_of_all_devices(now):
    assert lap(now, 'TPU v5 lite')['mfu'] == pytest.approx(3e14 / (2 * 197e12))


def test_steps_are_counted_apart_from_what_is_not_one(now):
    measured = Clock(Work(8, None, 1, 'cpu', 1), now[0])
    now[0] += 5
    measured.restart(1)
    with measured.waiting():
        now[0] += 1
    now[0] += 3
    measured.lap(2)
    with measured.paused():
        now[0] += 7
    assert measured.steps() == {'seconds': 4.0, 'data_wait_seconds': 1.0}
    now[0] += 2
    assert measured.steps() == {'seconds': 2.0, 'data_wait_seconds': 0.0}
