"""What a config would run, from abstract shapes alone: parameters, shardings, FLOPs, memory."""

from functools import partial
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from bigjax import components, trees
from bigjax.config import Config
from bigjax.models import flops
from bigjax.nn import blocks
from bigjax.sharding.mesh import describe_mesh
from bigjax.train.build import Run, batch_spec, build, with_pretrained_shape
from bigjax.train.progress import number
from bigjax.train.step import train_step


def describe(config: Config, console: Console) -> None:
    """Prints the parameter table and the sizes of a step. Raises: ConfigError, DataError."""
    run = build(with_pretrained_shape(config))
    console.print(parameter_table(run))
    for name, value in summary(run).items():
        console.print(f'{name:32} {value}', highlight=False, soft_wrap=True)
    for note in run.notes:
        console.print(note, style='yellow', soft_wrap=True)


def parameter_table(run: Run) -> Table:
    """A row a parameter: its shape, logical axes, and the part that each device holds."""
    table = Table('parameter', 'shape', 'logical axes', 'sharding', 'a device holds')
    axes = jax.tree.leaves(run.recipe.model.axes['params'])
    for (path, leaf), names in zip(
        jax.tree.leaves_with_path(run.abstract.params), axes, strict=True
    ):
        table.add_row(
            trees.path_name(path),
            _times(leaf.shape),
            ', '.join(str(name) for name in names),
            ', '.join(_axes(part) for part in leaf.sharding.spec) or 'whole',
            _times(leaf.sharding.shard_shape(leaf.shape)),
        )
    return table


def summary(run: Run) -> dict[str, str]:
    """Counts and bytes, in words; FLOPs are those of one whole training step over all devices."""
    config, state = run.config, run.abstract
    batch = batch_spec(run.splits.spec, config.train.batch_size)
    step_flops = flops.count(partial(train_step, run.recipe), state, batch).flops
    rows = {split: len(source) for split, source in run.splits.sources.items()}
    return {
        'mesh': describe_mesh(run.mesh.shape),
        'rows': ', '.join(f'{split} {count:,}' for split, count in rows.items()),
        'steps': f'{run.total_steps:,} of {config.train.batch_size} rows',
        'parameters': f'{trees.count(state.params):,}',
        'parameters, bytes a device': in_bytes(bytes_a_device(state.params)),
        'optimizer state, bytes a device': in_bytes(bytes_a_device(state.optimizer)),
        'whole state, bytes a device': in_bytes(bytes_a_device(state)),
        **_choices(run),
        'FLOPs a step (jaxpr)': si(step_flops),
        'FLOPs of the run': si(step_flops * run.total_steps),
    }


def _choices(run: Run) -> dict[str, str]:
    """What is traded for memory: precision, recomputation, the portions of a step."""
    config, precision = run.config, run.config.precision
    rows = config.train.batch_size // config.train.accumulation
    found = {
        'compute': precision.compute + (', scaled loss' if run.abstract.loss_scale else ''),
        'optimizer state kept in': precision.moments,
        'accumulation': f'{config.train.accumulation} x {rows} rows',
    }
    module = components.find('model', config.model.name, 'config.model.name')
    model = components.build_config(module, config.model.options, 'config.model')
    if isinstance(model, blocks.Config):
        found['blocks'] = 'scanned' if model.is_scanned else 'unrolled'
        found['remat'] = model.remat
    if run.recipe.task.kind == 'language_model':
        found['positions of logits at once'] = str(config.task.options.get('chunk') or 'all')
    return found


def bytes_a_device(tree: Any) -> int:
    """What one device holds of a tree of abstract arrays with shardings."""
    shards = [
        jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
        for leaf in jax.tree.leaves(tree)
    ]
    return trees.num_bytes(shards)


def _times(shape: tuple[int, ...]) -> str:
    return ' x '.join(map(str, shape)) or 'scalar'


def _axes(part: Any) -> str:
    if part is None:
        return '-'
    return part if isinstance(part, str) else '*'.join(part)


def in_bytes(num_bytes: float) -> str:
    """With a binary prefix: `5.2 GiB`."""
    return _scaled(num_bytes, 1024, ('B', 'KiB', 'MiB', 'GiB', 'TiB'))


def si(value: float) -> str:
    """With a decimal prefix: `1.3 G`."""
    return _scaled(value, 1000, ('', 'k', 'M', 'G', 'T', 'P', 'E', 'Z'))


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    unit = 0
    while value >= base and unit < len(units) - 1:
        value, unit = value / base, unit + 1
    return f'{number(value)} {units[unit]}'.strip()
