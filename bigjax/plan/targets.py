"""What a plan is made for: slices of TPUs, nodes of GPUs, or virtual CPU devices, none at hand."""

import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
from jax.experimental import topologies

from bigjax.chips import CHIPS, Chip
from bigjax.errors import ConfigError, EnvironmentProblem, nearest

TPUS = {'v4': 'TPU v4', 'v5e': 'TPU v5e', 'v5p': 'TPU v5p', 'v6e': 'TPU v6e', 'tpu7x': 'TPU7x'}
GPUS = {
    'a100': 'NVIDIA A100-SXM4-80GB',
    'h100': 'NVIDIA H100 80GB HBM3',
    'h200': 'NVIDIA H200',
    'b200': 'NVIDIA B200',
}
KINDS = {**TPUS, **GPUS}
PLUGINS = {'tpu': 'libtpu', 'cuda': 'jax_plugins.xla_cuda12'}


@dataclass(frozen=True)
class Target:
    """Devices to plan for.

    kind: a key of `CHIPS`; None for the CPU.
    shape: of the torus of one slice; nodes x GPUs; or the number of CPU devices.
    compiler: whose, and 'cpu' where the target's own is not installed: then all is an estimate.
    """

    name: str
    kind: str | None
    shape: tuple[int, ...]
    num_slices: int
    compiler: Literal['tpu', 'cuda', 'cpu']

    @property
    def chip(self) -> Chip | None:
        """One of the devices that the compiler lists."""
        if self.kind is None:
            return None
        chip = CHIPS[self.kind]
        if self.kind != 'TPU v4':
            return chip
        # which it lists core by core, though programs that run take both for one device
        return replace(
            chip, flops=chip.flops / 2, memory=chip.memory // 2, bandwidth=chip.bandwidth / 2
        )

    @property
    def usable(self) -> int | None:
        """Bytes of a device's memory that a program gets: TPUs' compiler keeps a 64th, and of a GPU
        XLA is best given nine tenths (XLA_PYTHON_CLIENT_MEM_FRACTION=.9)."""
        chip = self.chip
        if chip is None:
            return None
        return chip.memory * 63 // 64 if self.kind in TPUS.values() else chip.memory * 9 // 10

    @property
    def is_estimate(self) -> bool:
        return self.kind is not None and self.compiler == 'cpu'

    @property
    def devices_a_chip(self) -> int:
        return 2 if self.kind in ('TPU v4', 'TPU7x') else 1

    @property
    def num_devices(self) -> int:
        return math.prod(self.shape) * self.num_slices * self.devices_a_chip


def parse(topology: str, num_slices: int = 1) -> Target:
    """`v5e:16x16`, `h100:8x8` (nodes x GPUs of each), or `cpu:8`.

    Raises: ConfigError on a topology that is none.
    """
    name, _, sizes = topology.partition(':')
    if name not in KINDS and name != 'cpu':
        raise ConfigError(f'--topology={topology}: {nearest(name, [*KINDS, "cpu"])}')
    if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', sizes):
        raise ConfigError(f'--topology={topology}: expected such as v5e:4x4, h100:1x8 or cpu:8')
    shape = tuple(map(int, sizes.split('x')))
    if name in GPUS and (len(shape) != 2 or num_slices > 1):
        raise ConfigError(f'--topology={topology}: expected nodes x GPUs, such as {name}:2x8')
    if num_slices < 1:
        raise ConfigError(f'--num_slices: expected at least 1, got {num_slices}')
    platform = 'tpu' if name in TPUS else 'cuda' if name in GPUS else 'cpu'
    compiler: Any = platform if platform == 'cpu' or is_installed(platform) else 'cpu'
    return Target(topology, KINDS.get(name), shape, num_slices, compiler)


def is_installed(platform: str) -> bool:
    """Whether the compiler for 'tpu' or 'cuda' is."""
    try:
        return importlib.util.find_spec(PLUGINS[platform]) is not None
    except ModuleNotFoundError:  # no jax_plugins at all
        return False


def environment(target: Target, optimization: str) -> Mapping[str, str]:
    """What the process that compiles for it needs in its environment before jax is imported."""
    flags = {
        'tpu': '',
        'cuda': '--xla_gpu_autotune_level=0',  # there is no card to time kernels on
        'cpu': f'--xla_force_host_platform_device_count={target.num_devices}',
    }
    return {
        'JAX_PLATFORMS': 'cpu',
        'JAX_OPTIMIZATION_LEVEL': optimization,
        'TPU_SKIP_MDS_QUERY': '1',  # there is no TPU to ask for
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # it thinks that it holds a TPU
        'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1',
        'XLA_FLAGS': flags[target.compiler],
    }


def devices(target: Target) -> list[Any]:
    """Devices that can be compiled for, not run on. Call it under `environment(target, ...)`.

    Raises: EnvironmentProblem where the compiler does not know such a topology.
    """
    if target.compiler == 'cpu':
        return jax.devices('cpu')
    backend = {'cuda': 'gpu'}.get(target.compiler, target.compiler)
    jax.default_backend = lambda: backend  # what layers choose their kernels by
    name = 'h' if target.compiler == 'cuda' else target.name  # any name but the machine's own
    options: dict[str, Any] = {}
    if target.compiler == 'cuda':
        from bigjax.plan import gpu

        card = target.name.partition(':')[0]
        gpu.with_cudnn(card)
        options['topology'] = 'x'.join(map(str, (1, *target.shape)))
        options['target_config'] = gpu.target_config(card)
    else:
        options['num_slices'] = target.num_slices
        if math.prod(target.shape) == 1:
            options['chips_per_host_bounds'] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(name, platform=target.compiler, **options)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        raise EnvironmentProblem(f'--topology={target.name}: {error}') from error
    return list(found.devices)
