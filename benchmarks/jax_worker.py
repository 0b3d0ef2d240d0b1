"""Our side of a benchmark: the training step of a config, as `workers.serve` wants it.

The specification has the plain `config`; the facts are those of one device.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from benchmarks.cases import prepared
from benchmarks.workers import Step, serve
from bigjax import config as configs
from bigjax.models.flops import parameter_counts
from bigjax.train.build import build


def start(spec: dict[str, Any]) -> tuple[Callable[[], dict[str, Any]], Step]:
    """Builds and compiles; the mesh stays set."""
    run = build(configs.resolve(spec['config']))
    compiled, dispatch = prepared(run)
    jax.set_mesh(run.mesh)
    device = jax.local_devices()[0]
    counts = parameter_counts(run.abstract.params, run.recipe.model.axes['params'], tied_head=True)
    memory = compiled.memory_analysis()
    sizes = {
        'argument_bytes': memory.argument_size_in_bytes,
        'output_bytes': memory.output_size_in_bytes,
        'aliased_bytes': memory.alias_size_in_bytes,
        'temporary_bytes': memory.temp_size_in_bytes,
    }
    fixed = {
        'version': f'jax {jax.__version__}',
        'device_kind': device.device_kind,
        'devices': jax.device_count(),
        'parameters': counts.total,
        'without_lookups': counts.without_lookups,
        'compiled': sizes,
    }

    def facts() -> dict[str, Any]:
        used = device.memory_stats() or {}
        return fixed | {'peak_memory_bytes': used.get('peak_bytes_in_use')}

    def step() -> Callable[[], object]:
        _, logged = dispatch()
        return partial(jax.block_until_ready, logged['loss'])

    return facts, step


if __name__ == '__main__':
    serve(start)
