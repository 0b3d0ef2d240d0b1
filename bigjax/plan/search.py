"""Which mesh, remat policy and batch to ask for: few are compiled, of the many that are estimated.

Memory is linear in the rows of a batch: what does not grow (state, gradients) and what does. The
estimate takes residuals of the forward pass for what grows; the first compiled step corrects it.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from bigjax.chips import Chip
from bigjax.config import Config, with_values
from bigjax.plan.compile import Answer
from bigjax.plan.roofline import speed
from bigjax.plan.sketch import MeshSketch, RematSketch, Sketch
from bigjax.plan.targets import Target
from bigjax.sharding.mesh import AXES, BATCH_AXES

MOST_PARTS = 16  # of a layer or a sequence; beyond, matrix products are too small
GROWTH = 4  # batches of up to so many times the config's are tried
GRADIENT = 4  # bytes of a parameter's gradient
Compile = Callable[[Config], Answer | None]
"""None if the compiler died."""


def fits(answer: Answer, target: Target) -> bool:
    """Whether a compiled step leaves the chip's memory unexceeded; on a CPU there is no limit."""
    if answer.out_of_memory is not None or answer.peak is None:
        return False
    return target.usable is None or answer.peak <= target.usable


def unit(config: Config, mesh: dict[str, int]) -> int:
    """The rows that a batch has to be a multiple of."""
    return math.prod(mesh.get(axis, 1) for axis in BATCH_AXES) * config.train.accumulation


def largest_batch(config: Config, first: Answer, target: Target, compile: Compile) -> Answer | None:
    """A step with the largest batch that fits, by a line through two of them and a third to prove
    it; None if not even the smallest does. `first` is the config's own.

    The batch grows to `GROWTH` times 4 of the config's at most.
    """
    if target.usable is None:
        return first
    step = unit(config, first.mesh)
    most = GROWTH**2 * first.rows // step * step
    answers = {first.rows: first}

    def good() -> list[int]:
        return [rows for rows, answer in answers.items() if fits(answer, target)]

    rows = first.rows * 2 if fits(first, target) else max(first.rows // 2 // step * step, step)
    for _ in range(4):
        rows = min(rows, most)
        answer = compile(with_values(config, **{'train.batch_size': rows}))
        if answer is None:
            break
        answers[rows] = answer
        rows = _line(answers, target.usable, step)
        rows = min(max(rows, max(good(), default=0) + step, step), most)
        rows = min(rows, min((n for n in answers if n not in good()), default=most + step) - step)
        if rows in answers or rows < step:
            break
    return answers[max(good())] if good() else None


def _line(answers: dict[int, Answer], usable: int, step: int) -> int:
    """The rows at which a line through two known peaks meets the memory; half the least if there
    are not two."""
    peaks = sorted((rows, answer.peak) for rows, answer in answers.items() if answer.peak)
    if len(peaks) < 2:
        return min(answers) // 2 // step * step
    nearest = sorted(sorted(peaks, key=lambda known: abs(known[1] - usable))[:2])
    (few, low), (many, high) = nearest
    slope = max((high - low) / (many - few), 1)
    return int(few + (usable - low) / slope) // step * step


@dataclass(frozen=True)
class Candidate:
    """What may be compiled, and what it is estimated to do a second."""

    mesh: dict[str, int]
    remat: str
    rows: int
    rate: float

    def config(self, config: Config, rows: int) -> Config:
        values: dict[str, object] = {f'mesh.{axis}': size for axis, size in self.mesh.items()}
        values['train.batch_size'] = rows
        if self.remat:
            values['model.remat'] = self.remat
        return with_values(config, **values)


def meshes(config: Config, target: Target, state: int) -> list[dict[str, int]]:
    """Factorisations over fsdp and one of data, context and tensor that can hold the state.

    state: bytes of the parameters and the optimizer's, whole. The expert axis is as the config's.
    """
    expert = config.mesh.expert or 1
    total, left = divmod(target.num_devices, target.num_slices * expert)
    divisors = [size for size in range(1, total + 1) if total % size == 0 and not left]
    found = []
    for axis, size in itertools.product(('data', 'context', 'tensor'), divisors):
        sizes = dict.fromkeys(AXES, 1) | {'slice': target.num_slices, 'expert': expert}
        sizes |= {'fsdp': total // size, axis: size}
        holds = state / (sizes['fsdp'] * sizes['tensor'] * expert) <= (target.usable or math.inf)
        if holds and (axis == 'data' or 1 < size <= MOST_PARTS):
            found.append(sizes)
    return found


def candidates(config: Config, target: Target, drawn: Sketch, first: Answer) -> Iterator[Candidate]:
    """All that should fit: of each remat policy in turn the mesh that is fastest by the estimate.

    By turns, because the estimate does not know how much memory traffic a policy saves.
    """
    chip = target.chip
    assert chip is not None
    assert target.usable is not None
    slack = _slack(first, drawn)
    found = []
    for mesh, (name, remat) in itertools.product(drawn.meshes, drawn.remats.items()):
        if not _splits_state(mesh, drawn.meshes):
            continue
        step = unit(config, mesh.sizes)
        gradients = mesh.memory['parameters']
        fixed = sum(mesh.memory.values()) - mesh.memory['batch'] + gradients
        devices = math.prod(mesh.sizes.values())
        a_row = slack * remat.kept / (config.train.batch_size * devices)
        room = int((target.usable - fixed) / max(a_row, 1)) // step * step
        most = max(config.train.batch_size, step) * GROWTH // step * step
        rows = min(room, most)
        if rows >= step:
            seconds = _estimate(config, drawn, mesh, remat, rows, chip)
            found.append(Candidate(mesh.sizes, name, rows, rows / seconds))
    found.sort(key=lambda candidate: -candidate.rate)
    by_policy = [[one for one in found if one.remat == name] for name in drawn.remats]
    turns = itertools.zip_longest(*sorted(by_policy, key=lambda ones: -ones[0].rate if ones else 0))
    return (candidate for turn in turns for candidate in turn if candidate is not None)


def _slack(first: Answer, drawn: Sketch) -> float:
    """What temporaries really take over what was estimated of the config's own step."""
    remat = drawn.remats.get(first.remat)
    if remat is None or first.peak is None or not remat.kept:
        return 1.0
    taken = first.peak - first.state - first.memory['parameters']
    return max(taken / (remat.kept / math.prod(first.mesh.values())), 1.0)


def _splits_state(mesh: MeshSketch, others: Iterable[MeshSketch]) -> bool:
    """Whether what tensor and fsdp are meant to split is split: no axis idles."""

    def whole(mesh: MeshSketch) -> int:
        return mesh.memory['parameters'] * mesh.sizes['fsdp'] * mesh.sizes['tensor']

    return whole(mesh) < 1.5 * min(map(whole, others))


def _estimate(
    config: Config, drawn: Sketch, mesh: MeshSketch, remat: RematSketch, rows: int, chip: Chip
) -> float:
    """Seconds of a step: products at the peak, or the collectives that its kind of mesh needs.

    Weights are gathered twice and their gradients reduced once, in 16 bits; where weights are
    copied gradients are reduced in 32; tensor moves each block's inputs 8 times, context its keys
    and values 4. The least kept by any policy stands for those.
    """
    sizes = mesh.sizes
    devices = math.prod(sizes.values())
    portion = rows / config.train.batch_size
    blocks_inputs = portion * min(other.kept for other in drawn.remats.values())
    local = blocks_inputs / math.prod(sizes[axis] for axis in BATCH_AXES)
    weights = drawn.parameters / sizes['tensor']

    def ring(axis: str) -> float:
        return (sizes[axis] - 1) / sizes[axis]

    links = (
        3 * 2 * weights * ring('fsdp')
        + 2 * GRADIENT * weights / sizes['fsdp'] * ring('data')
        + 8 * local / sizes['context'] * ring('tensor')
        + 4 * local / sizes['context'] * ring('context')
    )
    network = 2 * GRADIENT * weights / sizes['fsdp'] * ring('slice')
    compute = portion * remat.flops / (devices * chip.flops)
    return max(compute, links / chip.link, network / chip.network) + 1e-3 * links / chip.link


def search(
    config: Config,
    target: Target,
    first: Answer,
    drawn: Sketch,
    compile: Compile,
    max_compilations: int,
) -> list[Answer]:
    """What was compiled, the config's own step included: those that fit first, the fastest on top.

    A candidate that does not fit is compiled again with as many rows as should.
    """
    assert target.chip is not None
    assert target.usable is not None
    found, left = [first], max_compilations
    for candidate in candidates(config, target, drawn, first):
        rows, step = candidate.rows, unit(config, candidate.mesh)
        while left and rows >= step:
            if (candidate.mesh, candidate.remat, rows) == (first.mesh, first.remat, first.rows):
                break
            answer, left = compile(candidate.config(config, rows)), left - 1
            if answer is None:
                break
            found.append(answer)
            if fits(answer, target) or not answer.peak:
                break
            fixed = answer.state + answer.memory['parameters']
            share = (target.usable - fixed) / max(answer.peak - fixed, 1)
            rows = min(int(rows * share) // step * step, rows - step)
    return sorted(found, key=partial(_rank, target), reverse=True)


def _rank(target: Target, answer: Answer) -> tuple[bool, float, int]:
    if not fits(answer, target):
        return False, 0.0, -(answer.peak or 0)
    assert target.chip is not None
    return True, speed(answer, target.chip).rate, -answer.rows
