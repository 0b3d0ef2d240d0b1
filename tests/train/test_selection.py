import pytest

from bigjax.config import EarlyStopping
from bigjax.train import selection


@pytest.mark.parametrize(
    ('metric', 'best'), [('val/accuracy', 3), ('val/log_loss', 1), ('val/bits_per_byte', 1)]
)
def test_best_knows_which_way_is_up(metric, best):
    assert selection.best_step(metric, [(1, 0.1), (2, 0.5), (3, 0.9), (4, 0.9)]) == best


def test_no_values_no_best():
    assert selection.best_step('val/loss', []) is None


@pytest.mark.parametrize(
    ('values', 'stops'),
    [
        ([3, 2, 1], False),
        ([3, 2, 2], False),
        ([3, 2, 2, 2], True),
        ([3, 2, 2, 1.9], False),
        ([3, 2, 1.95, 1.95], True),
        ([1], False),
        ([], False),
    ],
)
def test_patience(values, stops):
    config = EarlyStopping(metric='val/loss', patience=2, min_delta=0.05)
    assert selection.should_stop(config, list(enumerate(values))) is stops
