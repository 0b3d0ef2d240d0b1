"""What accelerators can do, by the name that JAX gives them (`device.device_kind`).

Peaks are dense bfloat16. A kind that is not in the table is unknown, and never guessed: no MFU
rather than a wrong one. Sources: the vendors' data sheets; for links and networks of TPUs, Austin
et al. 2025 (How to Scale Your Model, chapter 2).
"""

from dataclasses import dataclass

GB, GIB = 10**9, 2**30
TERA = 10**12


@dataclass(frozen=True)
class Chip:
    """One JAX device of a kind.

    flops: operations a second. memory: bytes. bandwidth: bytes a second to and from that memory.
    link: bytes a second that one device sends along one axis of a mesh inside a slice or node (ICI
        in both directions of a ring, NVLink). network: the same between slices or nodes.
    """

    flops: float
    memory: int
    bandwidth: float
    link: float
    network: float


_V5E = Chip(197 * TERA, 16 * GIB, 820 * GB, 90 * GB, 3.125 * GB)
_V5P = Chip(459 * TERA, 95 * GIB, 2765 * GB, 180 * GB, 6.25 * GB)
_V6E = Chip(918 * TERA, 32 * GIB, 1640 * GB, 180 * GB, 12.5 * GB)
_A100_40 = Chip(312 * TERA, 40 * GIB, 1555 * GB, 300 * GB, 25 * GB)
_A100_80 = Chip(312 * TERA, 80 * GIB, 2039 * GB, 300 * GB, 25 * GB)

CHIPS: dict[str, Chip] = {
    'TPU v4': Chip(275 * TERA, 32 * GIB, 1228 * GB, 90 * GB, 6.25 * GB),
    'TPU v5 lite': _V5E,
    'TPU v5e': _V5E,
    'TPU v5': _V5P,
    'TPU v5p': _V5P,
    'TPU v6 lite': _V6E,
    'TPU v6e': _V6E,
    'TPU7x': Chip(2307 * TERA / 2, 96 * GIB, 3690 * GB, 200 * GB, 12.5 * GB),  # half a chip
    'NVIDIA A100-SXM4-40GB': _A100_40,
    'NVIDIA A100-PCIE-40GB': _A100_40,
    'NVIDIA A100-SXM4-80GB': _A100_80,
    'NVIDIA A100 80GB PCIe': _A100_80,
    'NVIDIA H100 80GB HBM3': Chip(989 * TERA, 80 * GIB, 3352 * GB, 450 * GB, 50 * GB),
    'NVIDIA H100 PCIe': Chip(756 * TERA, 80 * GIB, 2039 * GB, 64 * GB, 50 * GB),
    'NVIDIA H100 NVL': Chip(835 * TERA, 94 * GB, 3938 * GB, 300 * GB, 50 * GB),
    'NVIDIA H200': Chip(989 * TERA, 141 * GB, 4800 * GB, 450 * GB, 50 * GB),
    'NVIDIA B200': Chip(2250 * TERA, 180 * GB, 8000 * GB, 900 * GB, 50 * GB),
    'NVIDIA GB200': Chip(2500 * TERA, 186 * GB, 8000 * GB, 900 * GB, 50 * GB),
}


def mfu(flops: float, seconds: float, kind: str, devices: int) -> float | None:
    """Model FLOP utilisation: `flops` in `seconds` over the peak of so many devices of a kind.

    None where the kind is not known.
    """
    chip = CHIPS.get(kind)
    return None if chip is None else flops / (seconds * chip.flops * devices)
