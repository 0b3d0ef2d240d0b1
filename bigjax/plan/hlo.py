"""What a compiled program moves: collectives, and bytes to and from memory, loops multiplied out.

Reads the text of a partitioned HLO module (`compiled.as_text()`), that is the program of one
device. XLA's own cost analysis counts the body of a loop once.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
CONTROL = ('while', 'conditional', 'call', 'async-start')
FREE = {
    *CONTROL,
    *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'domain'),
    *('partition-id', 'replica-id', 'opt-barrier'),
}
SLICES = ('dynamic-slice', 'gather', 'slice')


class Instruction(NamedTuple):
    """One line: `name = shape op(arguments), attributes`; operands are the names in arguments."""

    name: str
    shape: str
    op: str
    arguments: str
    attributes: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r'%([\w.\-]+)', self.arguments)


@dataclass
class Computation:
    """Instructions by name, in order."""

    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        return next(line for line in self.instructions.values() if line.is_root)

    def users(self, name: str) -> list[Instruction]:
        return [line for line in self.instructions.values() if name in line.operands]


@dataclass(frozen=True)
class Module:
    """Computations by name."""

    computations: Mapping[str, Computation]
    entry: str


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind over the same axes.

    times: executions in a step. size: bytes of what they gather, reduce or send, whole, summed.
    source: the largest one's place in the Python program.
    """

    kind: str
    axes: tuple[str, ...]
    times: int
    size: int
    source: str = ''


def parse(text: str) -> Module:
    """Raises: ValueError if there is no entry computation."""
    computations: dict[str, Computation] = {}
    entry = None
    for line in text.splitlines():
        header = re.match(r'(ENTRY )?%?([\w.\-]+) .*\{$', line)
        if header and not line.startswith('HloModule'):
            current = computations[header[2]] = Computation()
            entry = header[2] if header[1] else entry
        elif instruction := _instruction(line):
            current.instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError('no ENTRY in this HLO')
    return Module(computations, entry)


def _instruction(line: str) -> Instruction | None:
    match = re.match(r'\s+(ROOT )?%?([\w.\-]+) = (.*)', line)
    if not match:
        return None
    rest = match[3]
    end = _closing(rest, 0) if rest[0] == '(' else rest.index(' ') - 1
    shape, rest = rest[: end + 1], rest[end + 2 :]
    start = rest.index('(')
    stop = _closing(rest, start)
    arguments, attributes = rest[start + 1 : stop], rest[stop + 1 :]
    return Instruction(match[2], shape, rest[:start], arguments, attributes, bool(match[1]))


def _closing(text: str, start: int) -> int:
    depth = 0
    for match in re.compile(r'[()]').finditer(text, start):
        depth += 1 if match[0] == '(' else -1
        if depth == 0:
            return match.start()
    raise ValueError(f'no closing bracket in {text[:80]!r}')


def sizes(shape: str, main_memory_only: bool = False) -> list[int]:
    """Bytes of each array in a shape; of those kept elsewhere, as in TPU's VMEM, 0 if asked."""
    found = []
    for dtype, dims, layout in re.findall(r'([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?', shape):
        elsewhere = main_memory_only and re.search(r'S\([1-9]\)', layout)
        elements = math.prod(int(n.strip('<=')) for n in dims.split(',') if n)
        bits = re.search(r'\d+', dtype)  # of pred, a byte; of a token, nothing
        width = int(bits[0]) / 8 if bits else float(dtype == 'pred')
        found.append(0 if elsewhere else int(width * elements))
    return found


def executions(module: Module) -> Iterator[tuple[str, int, bool]]:
    """(computation, executions in a step, whether it is part of a fusion), for each call of it."""

    def visit(name: str, times: int, is_fused: bool) -> Iterator[tuple[str, int, bool]]:
        yield name, times, is_fused
        for line in module.computations[name].instructions.values():
            again = trip_count(module, line) if line.op == 'while' else 1
            for called in _called(line):
                yield from visit(called, times * again, is_fused or line.op not in CONTROL)

    yield from visit(module.entry, 1, False)


def _called(line: Instruction, keys: str = r'body|calls|to_apply|\w+_computations?') -> list[str]:
    if line.op.endswith(('-done', '-update')):  # of what their start has called
        return []
    named = re.findall(rf'[ ,](?:{keys})=(\{{[^}}]*\}}|%?[\w.\-]+)', line.attributes)
    return re.findall(r'[\w.\-]+', ' '.join(named).replace('%', ' '))


def trip_count(module: Module, loop: Instruction) -> int:
    """As the compiler wrote it down, or the one integer in the condition; 1 where neither tells."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    pending, bounds = _called(loop, 'condition'), set()
    while pending:
        for line in module.computations[pending.pop()].instructions.values():
            pending += _called(line, 'calls')
            if line.op == 'constant' and re.match(r'[su](32|64)\[\]', line.shape):
                bounds.add(int(line.arguments))
    return max(bounds) if len(bounds) == 1 else 1


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """By kind and axes, the largest first; partition i is device i of the mesh, flattened.

    A start and its done are one; lines with the same channel in one computation are one.
    """
    module = parse(text)
    counts: dict[tuple[str, tuple[str, ...]], list[int]] = defaultdict(lambda: [0, 0, 0])
    sources: dict[tuple[str, tuple[str, ...]], str] = {}
    for name, times, is_fused in executions(module):
        computation, channels = module.computations[name], set()
        for line in computation.instructions.values():
            kind = line.op.removesuffix('-start')
            channel = re.search(r'channel_id=(\d+)', line.attributes)
            if kind not in KINDS or (channel and (kind, channel[1]) in channels):
                continue
            if channel:
                channels.add((kind, channel[1]))
            groups = partition_groups(line.attributes, int(np.prod([*mesh.values()])))
            axes = varying_axes(groups, mesh)
            if not axes:
                continue
            size = _size(line)
            scattered = any(user.op == 'dynamic-slice' for user in computation.users(line.name))
            if kind == 'reduce-scatter':
                size *= groups.shape[1]
            elif kind == 'all-reduce' and is_fused and scattered:
                kind = 'reduce-scatter'  # as TPUs have it
            found = counts[kind, axes]
            found[0] += times
            found[1] += times * size
            if times * size > found[2]:
                found[2] = times * size
                sources[kind, axes] = _source(line)
    rows = [
        Collective(*key, count, size, sources.get(key, ''))
        for key, (count, size, _) in counts.items()
    ]
    return sorted(rows, key=lambda row: -row.size)


def _size(line: Instruction) -> int:
    """Of the whole result: a start's is a tuple of operands, results and flags."""
    parts = sizes(line.shape)
    if not line.op.endswith('-start') or line.op.startswith('all-reduce'):
        return sum(parts)
    return sum(parts[len(line.operands) : 2 * len(line.operands)])


def _source(line: Instruction) -> str:
    match = re.search(r'op_name="([^"]*)"', line.attributes)
    return match[1] if match else ''


def partition_groups(attributes: str, num_partitions: int) -> np.ndarray:
    """int [groups, members]: who takes part in a collective together; for permutes, the pairs."""
    number_lists = r'\{(\{[\d,]*\}(?:,\{[\d,]*\})*)\}'
    if match := re.search(r'(?:source_target_pairs|replica_groups)=' + number_lists, attributes):
        rows = re.findall(r'\{([\d,]*)\}', match[1])
        return np.array([[int(n) for n in row.split(',')] for row in rows])
    iota = r'\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?'
    if match := re.search('replica_groups=' + iota, attributes):
        return _iota(match[2], match[3]).reshape(_numbers(match[1]))
    if match := re.search(r'replica_groups=mesh\[([^\]]*)\](.*?) ?\{([^}]*)\}', attributes):
        axes = re.findall(r"'?([\w.\-]+)'?=(\d+)", match[1])
        names, shape = [name for name, _ in axes], [int(size) for _, size in axes]
        order = re.search(r'device_ids=\((.*)\)', match[2])
        ids = np.arange(num_partitions) if order is None else _device_ids(order[1])
        return _over_axes(ids.reshape(shape), names, match[3])
    return np.arange(num_partitions)[None]


def _device_ids(text: str) -> np.ndarray:
    if match := re.search(r'(?:<=\[([\d,]+)\]|\[([\d,]+)\](?=T))(?:T\(([\d,]+)\))?', text):
        return _iota(match[1] or match[2], match[3])
    return np.array([int(number) for number in re.findall(r'\d+', text)])


def _iota(shape: str, permutation: str | None) -> np.ndarray:
    dims = _numbers(shape)
    ids = np.arange(np.prod(dims)).reshape(dims)
    return ids.transpose(_numbers(permutation)) if permutation else ids


def _over_axes(ids: np.ndarray, names: list[str], chosen: str) -> np.ndarray:
    """The groups over some axes of a mesh; `x:(m)k` is the part of size k of x after one of m."""
    rest = np.indices(ids.shape)  # coordinates without what is chosen: one group has them alike
    for name, before, size in re.findall(r"'?([\w.\-]+)'?(?::\((\d+)\)(\d+))?", chosen):
        at = names.index(name)
        after = ids.shape[at] // (int(before) * int(size)) if size else 1
        rest[at] -= rest[at] // after % int(size or ids.shape[at]) * after
    group = np.ravel_multi_index(tuple(rest), ids.shape).ravel()
    return ids.ravel()[np.argsort(group, kind='stable')].reshape(len(np.unique(group)), -1)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(',') if number]


def varying_axes(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the members of a group differ."""
    coordinates = np.unravel_index(groups, tuple(mesh.values()))
    return tuple(
        axis
        for axis, places in zip(mesh, coordinates, strict=True)
        if (places != places[:, :1]).any()
    )


def memory_traffic(text: str) -> int:
    """Bytes that one device reads from and writes to its memory in a step.

    Operands and results of whatever is not fused away; of a slice, or an update in place, only
    the part that is touched.
    """
    module = parse(text)
    total = 0
    for name, times, is_fused in executions(module):
        if not is_fused:
            computation = module.computations[name]
            lines = computation.instructions.values()
            total += times * sum(_traffic(module, computation, line) for line in lines)
    return total


def _traffic(module: Module, computation: Computation, line: Instruction) -> int:
    if line.op in FREE or line.op.endswith('-done') or 'AllocateBuffer' in line.attributes:
        return 0
    result = sum(sizes(line.shape, True))
    if line.op.endswith('-start'):
        return result  # names its operands too
    if line.op in SLICES:
        return 2 * result

    def size(operand: str) -> int:
        return sum(sizes(computation.instructions[operand].shape, True))

    if line.op == 'dynamic-update-slice':
        return 2 * size(line.operands[1])
    if line.op == 'fusion':
        fused = module.computations[_called(line, 'calls')[0]]
        operands = (size(operand) for operand in line.operands)
        touched = _touched(fused)
        return sum(map(min, operands, touched)) + min(result, _written(fused))
    return result + sum(map(size, line.operands))


def _touched(fused: Computation) -> list[int]:
    """Bytes of each parameter that a fusion reads, at most."""
    parameters = [line for line in fused.instructions.values() if line.op == 'parameter']
    parameters.sort(key=lambda line: int(line.arguments))
    return [_read(fused, line) for line in parameters]


def _read(fused: Computation, line: Instruction) -> int:
    total = 0
    for user in fused.users(line.name):
        if user.op == 'bitcast':
            total += _read(fused, user)
        elif user.op in SLICES and user.operands[0] == line.name:
            total += sum(sizes(user.shape))
        elif not (user.op == 'dynamic-update-slice' and user.operands[0] == line.name):
            return sum(sizes(line.shape))
    return total


def _written(fused: Computation) -> int:
    root = fused.root
    outputs = [fused.instructions[name] for name in root.operands] if root.op == 'tuple' else [root]
    total = 0
    for output in outputs:
        while output.op == 'bitcast':
            output = fused.instructions[output.operands[0]]
        if output.op == 'dynamic-update-slice':
            output = fused.instructions[output.operands[1]]
        total += sum(sizes(output.shape))
    return total
