"""The training step of a config, compiled ahead of time, and what the compiled program tells."""

import dataclasses
import re
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bigjax import trees
from bigjax.config import Config
from bigjax.models import flops
from bigjax.plan import hlo, targets
from bigjax.plan.hlo import Collective
from bigjax.plan.targets import Target
from bigjax.train.build import Run, build, with_pretrained_shape
from bigjax.train.describe import bytes_a_device
from bigjax.train.model_flops import model_flops

LARGE = 2**20  # bytes below which nothing is worth a warning


@dataclass(frozen=True)
class OutOfMemory:
    """Bytes of a device; None where the compiler does not say."""

    needed: int | None
    available: int | None


@dataclass(frozen=True)
class Answer:
    """A training step, compiled. Bytes are those of one device.

    mesh: sizes of all axes. reach: for those above 1, over how many dimensions of the torus they
        run; 0 for an axis that leaves the slice or node.
    remat: the model's policy, '' where none is chosen.
    tokens: a row of the batch has; None where rows have none.
    memory: bytes by what they hold: parameters, optimizer, other state, batch, and temporaries,
        which are activations, gradients and buffers of the compiler's at the peak.
    flops: of the whole step over all devices, from its jaxpr, recomputation included;
        model_flops: what the model asks for, as MFU counts it by that formula.
    compiler_flops, compiler_bytes: of a device, by XLA, which counts loops once.
    traffic: bytes to and from memory, loops multiplied out.
    seconds: that the compiler took.
    """

    mesh: dict[str, int]
    reach: dict[str, int]
    remat: str
    rows: int
    tokens: int | None
    memory: dict[str, int]
    flops: int
    model_flops: int
    formula: str
    compiler_flops: float | None = None
    compiler_bytes: float | None = None
    traffic: int | None = None
    collectives: tuple[Collective, ...] = ()
    warnings: tuple[str, ...] = ()
    out_of_memory: OutOfMemory | None = None
    seconds: float = 0.0

    @property
    def state(self) -> int:
        """What does not grow with the batch: parameters, optimizer, other state."""
        return sum(self.memory.get(part, 0) for part in ('parameters', 'optimizer', 'other state'))

    @property
    def peak(self) -> int | None:
        """None when it did not fit and the compiler does not say what it needed."""
        if self.out_of_memory is not None:
            return self.out_of_memory.needed
        return sum(self.memory.values())


def compile_step(settings: Config, target: Target) -> Answer:
    """The training step of the config, as the loop runs it, on abstract arrays.

    Raises: ConfigError, DataError, EnvironmentProblem for what cannot be built.
    """
    devices = targets.devices(target)
    run = build(with_pretrained_shape(settings), devices=devices)
    batch = run.abstract_batch
    with jax.set_mesh(run.mesh):
        step = run.jitted_step()
        counted, asked = flops.count(step, run.abstract, batch).flops, model_flops(run)
        draft = Answer(
            mesh=dict(run.mesh.shape),
            reach=reach(run.mesh),
            remat=str(settings.model.options.get('remat', '')),
            rows=settings.train.batch_size,
            tokens=run.splits.spec.tokens,
            memory=inputs(run),
            flops=counted,
            model_flops=asked.a_step,
            formula=asked.formula,
            warnings=tuple(advice(run)),
        )
        started = time.perf_counter()
        try:
            compiled = step.lower(run.abstract, batch).compile()
        except (jax.errors.JaxRuntimeError, RuntimeError) as error:
            failed = out_of_memory(str(error))
            if failed is None:
                raise
            return dataclasses.replace(draft, out_of_memory=failed)
    return _filled(draft, compiled, target, time.perf_counter() - started)


def _filled(draft: Answer, compiled: Any, target: Target, seconds: float) -> Answer:
    text, cost = compiled.as_text(), compiled.cost_analysis() or {}
    found = hlo.collectives(text, draft.mesh)
    if draft.mesh['slice'] > 1 and not any('slice' in row.axes for row in found):
        # libtpu turns what goes between slices into transfers by the host: gradients, at least
        found.append(Collective('all-reduce', ('slice',), 1, draft.memory['parameters']))
    return dataclasses.replace(
        draft,
        memory={**draft.memory, 'temporaries': _temporaries(compiled.memory_analysis(), target)},
        compiler_flops=cost.get('flops'),
        compiler_bytes=cost.get('bytes accessed'),
        traffic=hlo.memory_traffic(text),
        collectives=tuple(found),
        warnings=(*draft.warnings, *reductions(found)),
        seconds=seconds,
    )


def _temporaries(sizes: Any, target: Target) -> int:
    """At the peak, beyond the arguments: those that are donated become the new state in place."""
    results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    if target.compiler == 'cpu' or not sizes.peak_memory_in_bytes:
        return sizes.temp_size_in_bytes + results  # its peak leaves out what is preallocated
    return max(sizes.peak_memory_in_bytes - sizes.argument_size_in_bytes, 0)


def inputs(run: Run) -> dict[str, int]:
    """Bytes a device of what goes into a step, by part."""
    state = run.abstract
    parts = {
        'parameters': bytes_a_device(state.params),
        'optimizer': bytes_a_device(state.optimizer),
    }
    rest = bytes_a_device(state) - sum(parts.values())
    return {**parts, 'other state': rest, 'batch': bytes_a_device(run.abstract_batch)}


def reach(mesh: Mesh) -> dict[str, int]:
    """See `Answer`. On switched links all of a node is one dimension away."""
    found = {}
    for axis, size in mesh.shape.items():
        if size == 1:
            continue
        lines = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), 0).reshape(size, -1)
        places = np.array([[_place(device) for device in line] for line in lines])
        varies = (places != places[:1]).any((0, 1))
        found[axis] = 0 if varies[0] else max(int(varies[1:].sum()), 1)
    return found


def _place(device: Any) -> tuple[int, ...]:
    """Which slice or node, then coordinates in its torus."""
    if device.platform == 'tpu':
        return (getattr(device, 'slice_index', 0), *device.coords)
    return (device.process_index,)


def advice(run: Run) -> list[str]:
    """What costs money and shows before anything is compiled."""
    found = list(run.notes)
    params = jax.tree.leaves(run.abstract.params)
    split = {leaf.shape: leaf.sharding.shard_shape(leaf.shape) for leaf in params}
    for path, leaf in jax.tree.leaves_with_path(run.abstract.optimizer):
        part = leaf.sharding.shard_shape(leaf.shape)
        if trees.num_bytes(leaf) >= LARGE and part != split.get(leaf.shape, part):
            found.append(
                f'optimizer state {trees.path_name(path)} of {trees.num_bytes(leaf):,} bytes is '
                'whole on every device though its parameter is split'
            )
    axes = jax.tree.leaves(run.recipe.model.axes['params'])
    for (path, leaf), names in zip(
        jax.tree.leaves_with_path(run.abstract.params), axes, strict=True
    ):
        rows = dict(zip(names, leaf.shape, strict=False)).get('vocab', 0)
        if rows % 128:
            found.append(
                f'{trees.path_name(path)} has {rows:,} rows of the vocabulary, no multiple of 128: '
                f'matrix units pad it; set config.model.vocab_size={-(-rows // 128) * 128}'
            )
    if run.config.precision.compute == 'float32':
        found.append(
            'config.precision.compute=float32: matrix units peak in bfloat16, which this roofline '
            'assumes'
        )
    return found


def reductions(found: list[Collective]) -> list[str]:
    """Gradients of split parameters that every device gets whole."""
    return [
        f'{row.size:,} bytes in {row.times} all-reduces over {"*".join(row.axes)}, the most for '
        f'{_tail(row.source)}: a reduce-scatter would move half'
        for row in found
        if row.kind == 'all-reduce' and 'fsdp' in row.axes and row.size >= 16 * LARGE
    ]


def _tail(source: str) -> str:
    return '/'.join(source.split('/')[-3:]) or 'a gradient'


def out_of_memory(message: str) -> OutOfMemory | None:
    """What a compiler's refusal says; None for any other error."""
    if not re.search('CompileTimeHbmOom|RESOURCE_EXHAUSTED|[Oo]ut of memory', message):
        return None
    size = r'\(?([\d.]+[KMGT]?)\)?'
    match = re.search(f'{size} (?:of|exceeds available HBM) {size}', message)
    needed, available = (_bytes(text) for text in match.groups()) if match else (None, None)
    return OutOfMemory(needed, available)


def _bytes(text: str) -> int:
    scale = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
    return round(float(text.rstrip('KMGT')) * scale.get(text[-1], 1))
