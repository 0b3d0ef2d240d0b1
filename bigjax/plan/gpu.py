"""What XLA's GPU compiler wants to know of a card that is not there."""

from pathlib import Path
from string import Template
from typing import NamedTuple

from bigjax.chips import CHIPS
from bigjax.plan.targets import GPUS


class Card(NamedTuple):
    """NVIDIA's architecture papers: compute capability, multiprocessors (SMs), float32 units of an
    SM, bytes of L2 cache, of an SM's shared memory, and of that a block's, and the clock in GHz."""

    capability: tuple[int, int]
    cores: int
    units: int
    l2: int
    shared: int
    block_shared: int
    clock: float


KIB, MIB = 2**10, 2**20
_HOPPER = Card((9, 0), 132, 128, 50 * MIB, 228 * KIB, 227 * KIB, 1.98)
CARDS = {
    'a100': Card((8, 0), 108, 64, 40 * MIB, 164 * KIB, 163 * KIB, 1.41),
    'h100': _HOPPER,
    'h200': _HOPPER,
    'b200': Card((10, 0), 148, 128, 126 * MIB, 228 * KIB, 227 * KIB, 1.965),
}


def target_config(name: str) -> str:
    """The card as a text proto, `stream_executor.GpuTargetConfigProto`."""
    card, chip = CARDS[name], CHIPS[GPUS[name]]
    major, minor = card.capability
    features = 'ACCELERATED_FEATURES' if major >= 9 else 'NONE'  # such as wgmma: sm_90a
    template = Template(Path(__file__).with_name('gpu.txtpb').read_text())
    values = card._asdict() | {'major': major, 'minor': minor, 'features': features}
    values |= {'memory': chip.memory, 'bandwidth': int(chip.bandwidth), 'name': GPUS[name]}
    return template.substitute(values)


def with_cudnn(name: str) -> None:
    """cuDNN's attention compiles where there is neither cuDNN nor card: JAX alone asks for both."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    here = CARDS[name].capability
    fused.check_cudnn_version = lambda: 91000
    fused.check_compute_capability = lambda least: here >= tuple(map(int, least.split('.')))
    fused.is_cuda_compute_capability_equal = lambda one: here == tuple(map(int, one.split('.')))
