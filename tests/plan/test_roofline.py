"""Seconds by hand: one chip that does 100 FLOPs and moves 10, 2 and 1 bytes a second."""

import pytest

from bigjax.chips import Chip
from bigjax.plan.compile import Answer
from bigjax.plan.hlo import Collective
from bigjax.plan.roofline import roofline, speed, transfer_times

CHIP = Chip(flops=100.0, memory=1000, bandwidth=10.0, link=2.0, network=1.0)
MESH = {'slice': 2, 'data': 1, 'fsdp': 8, 'tensor': 4}
REACH = {'slice': 0, 'fsdp': 2, 'tensor': 1}


@pytest.mark.parametrize(
    ('kind', 'axes', 'inside', 'between'),
    [
        ('all-gather', ('tensor',), 64 * 3 / 4 / 2, 0),
        ('reduce-scatter', ('fsdp',), 64 * 7 / 8 / 4, 0),  # two dimensions of the torus at once
        ('all-reduce', ('tensor',), 2 * 64 * 3 / 4 / 2, 0),
        ('all-reduce', ('slice',), 0, 2 * 64 * 1 / 2 / 1),
        ('all-gather', ('slice', 'fsdp'), 64 * 7 / 8 / 4, 64 / 8 * 1 / 2),
        ('collective-permute', ('fsdp',), 64 / 4, 0),
        ('collective-permute', ('slice', 'fsdp'), 0, 64),
    ],
)
def test_transfers(kind, axes, inside, between):
    found = transfer_times(Collective(kind, axes, 1, 64), MESH, REACH, CHIP)
    assert found == pytest.approx((inside, between))


def answer(**values):
    base = {
        'mesh': MESH,
        'reach': REACH,
        'remat': 'full',
        'rows': 16,
        'tokens': 10,
        'memory': {'parameters': 4},
        'flops': 64 * 300,
        'model_flops': 64 * 200,
        'formula': 'by hand',
        'traffic': 20,
    }
    return Answer(**base | values)


def test_the_slowest_binds():
    line = roofline(answer(), CHIP)
    assert (line.compute, line.memory, line.links, line.network) == (3, 2, 0, 0)
    assert (line.seconds, line.binds) == (3, 'compute')
    fast = speed(answer(), CHIP)
    assert (fast.unit, fast.rate) == ('tokens', pytest.approx(160 / 3))
    assert fast.mfu == pytest.approx(200 / 300)
    reduced = answer(collectives=(Collective('all-reduce', ('slice',), 3, 50),), tokens=None)
    assert roofline(reduced, CHIP).binds == 'network'
    assert speed(reduced, CHIP).unit == 'examples'
    assert speed(reduced, CHIP).rate == pytest.approx(16 / 50)
    assert roofline(answer(traffic=900), CHIP).binds == 'memory'


def test_no_roofline_without_a_program():
    with pytest.raises(ValueError, match='does not fit'):
        roofline(answer(traffic=None), CHIP)
