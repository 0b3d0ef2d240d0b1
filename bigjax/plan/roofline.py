"""How fast a step can be at best: the slowest of compute, memory, links and network, each alone.

The bound assumes that all four overlap perfectly and that each runs at its peak (Williams et al.
2009; for collectives, Austin et al. 2025, chapters 1 and 3). A real step takes longer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bigjax.chips import Chip
from bigjax.plan.compile import Answer
from bigjax.plan.hlo import Collective

PASSES = {'all-reduce': 2}  # a reduce-scatter, then an all-gather
HOUR = 3600


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step, by resource.

    compute: FLOPs of the program over the chips' peak. memory: traffic over bandwidth.
    links: collectives inside a slice or node. network: between them.
    """

    compute: float
    memory: float
    links: float
    network: float

    @property
    def seconds(self) -> float:
        return max(vars(self).values())

    @property
    def binds(self) -> str:
        """The resource that a step waits for."""
        return max(vars(self), key=vars(self).__getitem__)


def roofline(answer: Answer, chip: Chip) -> Roofline:
    """Of a step that was compiled. Raises: ValueError if it ran out of memory."""
    if answer.traffic is None:
        raise ValueError('a step that does not fit has no roofline')
    links = network = 0.0
    for row in answer.collectives:
        inside, between = transfer_times(row, answer.mesh, answer.reach, chip)
        links, network = links + inside, network + between
    devices = math.prod(answer.mesh.values())
    return Roofline(
        compute=answer.flops / (devices * chip.flops),
        memory=answer.traffic / chip.bandwidth,
        links=links,
        network=network,
    )


def transfer_times(
    row: Collective, mesh: Mapping[str, int], reach: Mapping[str, int], chip: Chip
) -> tuple[float, float]:
    """Seconds on the links of a slice, and on the network between slices.

    n devices in a group each send (n - 1) / n of the bytes, twice for an all-reduce; over several
    dimensions of a torus at once. A group that leaves the slice first does its part inside, and
    sends the share of one device through the network.
    """
    near = [axis for axis in row.axes if reach[axis]]
    far = [axis for axis in row.axes if not reach[axis]]
    inside = math.prod(mesh[axis] for axis in near)
    between = math.prod(mesh[axis] for axis in far)
    if row.kind == 'collective-permute':
        return (0.0, row.size / chip.network) if far else (row.size / _links(near, reach, chip), 0)
    size = row.size * PASSES.get(row.kind, 1)
    return (
        size * (inside - 1) / inside / _links(near, reach, chip),
        size / inside * (between - 1) / between / chip.network,
    )


def _links(axes: list[str], reach: Mapping[str, int], chip: Chip) -> float:
    return chip.link * max(sum(reach[axis] for axis in axes), 1)


@dataclass(frozen=True)
class Speed:
    """The most that a roofline allows. rate: of tokens, or of examples where rows have none."""

    unit: str
    rate: float
    mfu: float


def speed(answer: Answer, chip: Chip) -> Speed:
    """MFU counts the FLOPs that the model asks for, not those computed again."""
    seconds = roofline(answer, chip).seconds
    devices = math.prod(answer.mesh.values())
    return Speed(
        'tokens' if answer.tokens else 'examples',
        answer.rows * (answer.tokens or 1) / seconds,
        answer.model_flops / (seconds * devices * chip.flops),
    )
