import pytest

from bigjax.chips import CHIPS
from bigjax.errors import ConfigError
from bigjax.plan import targets
from bigjax.plan.gpu import CARDS


@pytest.mark.parametrize(
    ('topology', 'slices', 'devices'),
    [
        ('v5e:16x16', 1, 256),
        ('v5e:4x4', 2, 32),
        ('v5p:2x2x4', 1, 16),
        ('tpu7x:2x2x1', 1, 8),
        ('h100:8x8', 1, 64),
        ('cpu:8', 1, 8),
    ],
)
def test_topologies(topology, slices, devices):
    assert targets.parse(topology, slices).num_devices == devices


@pytest.mark.parametrize(
    ('topology', 'slices', 'says'),
    [
        ('v5:4x4', 1, 'did you mean'),
        ('v5e', 1, 'expected such as'),
        ('v5e:4x0', 1, 'expected such as'),
        ('h100:8', 1, 'nodes x GPUs'),
        ('h100:1x8', 2, 'nodes x GPUs'),
        ('v5e:4x4', 0, 'at least 1'),
    ],
)
def test_no_topologies(topology, slices, says):
    with pytest.raises(ConfigError, match=says):
        targets.parse(topology, slices)


def test_a_missing_compiler_makes_an_estimate(monkeypatch):
    monkeypatch.setattr(targets, 'is_installed', lambda platform: False)
    target = targets.parse('v5e:4x4')
    assert (target.compiler, target.is_estimate) == ('cpu', True)
    assert '=16' in targets.environment(target, 'O1')['XLA_FLAGS']
    assert not targets.parse('cpu:8').is_estimate


def test_a_core_of_v4_is_half_a_chip():
    chip = targets.parse('v4:2x2x1').chip
    assert 2 * chip.memory == CHIPS['TPU v4'].memory
    assert 2 * chip.flops == CHIPS['TPU v4'].flops


def test_every_kind_is_known():
    assert set(targets.KINDS.values()) <= set(CHIPS)
    assert set(CARDS) == set(targets.GPUS)
