"""Asks a process of its own to compile, and shows that it is at work."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

from bigjax import errors, schema
from bigjax.config import Config
from bigjax.errors import EnvironmentProblem
from bigjax.plan.compile import Answer
from bigjax.plan.sketch import Sketch
from bigjax.plan.targets import Target, environment
from bigjax.sharding.mesh import AXES

OPTIMIZATION = 'O1'
"""Of the compiler, as JAX_OPTIMIZATION_LEVEL: at O2, its own, it takes five times as long."""


def ask(config: Config, target: Target, optimization: str = OPTIMIZATION) -> Answer:
    """The config's step, compiled for the target. A line on stderr tells what is going on.

    Raises: ConfigError, DataError for a config that cannot be built; EnvironmentProblem with the
    compiler's last words if it dies.
    """
    label = f'compiling for {target.name}: batch {config.train.batch_size}, {describe(config)}'
    answer, log = _request({}, config, target, optimization, label)
    answer['warnings'] += rematerialisations(log)
    return schema.build(Answer, answer, 'answer')


def ask_sketch(config: Config, target: Target, meshes: list[dict[str, int]]) -> Sketch:
    """`sketch.sketch`, in a process that sees the target. Raises: as `ask` does."""
    label = f'building for {target.name} on {len(meshes)} meshes'
    answer, _ = _request({'meshes': meshes}, config, target, OPTIMIZATION, label)
    return schema.build(Sketch, answer, 'sketch')


def _request(
    more: dict[str, Any], config: Config, target: Target, optimization: str, label: str
) -> tuple[dict[str, Any], str]:
    """The worker's answer, and what it said on stderr."""
    request = {'config': schema.to_dict(config), 'target': schema.to_dict(target), **more}
    command = [sys.executable, '-m', 'bigjax.plan.worker']
    variables = {**os.environ, **environment(target, optimization)}
    with tempfile.TemporaryFile('w+') as wanted, tempfile.TemporaryFile('w+') as said:
        json.dump(request, wanted)
        wanted.seek(0)
        process = subprocess.Popen(
            command, stdin=wanted, stdout=subprocess.PIPE, stderr=said, env=variables
        )
        try:
            output = _wait(process, label)
        finally:
            process.kill()  # if we are interrupted
        said.seek(0)
        log = said.read()
    if process.returncode != 0:
        raise EnvironmentProblem(
            f'the compiler for {target.name} failed (exit {process.returncode}): {last_words(log)}'
        )
    answer = json.loads(output)
    if 'error' in answer:
        raise getattr(errors, answer['error'])(answer['message'])
    return answer, log


def _wait(process: subprocess.Popen, label: str) -> bytes:
    """The output of the process. On a terminal the line counts its seconds."""
    started, live = time.monotonic(), sys.stderr.isatty()
    if not live:
        print(label, file=sys.stderr, flush=True)
    while True:
        try:
            output, _ = process.communicate(timeout=1 if live else None)
        except subprocess.TimeoutExpired:
            print(f'\r{label}, {time.monotonic() - started:.0f} s', end='', file=sys.stderr)
            continue
        if live:
            print('\r' + ' ' * (len(label) + 10), end='\r', file=sys.stderr, flush=True)
        return output


def describe(config: Config) -> str:
    """The mesh that a config asks for, and its remat policy, in a few words."""
    sizes = [(axis, getattr(config.mesh, axis) or 1) for axis in AXES]
    mesh = ' '.join(f'{axis}={size}' for axis, size in sizes if size > 1) or config.mesh.preset
    remat = config.model.options.get('remat')
    return f'{mesh}, remat {remat}' if remat else mesh


def last_words(log: str) -> str:
    """The line of a process's stderr that says most about its end."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r'^F\d{4} |Error\b|Check failed', line)]
    return (telling or lines or ['it said nothing'])[-1][:300]


def rematerialisations(log: str) -> list[str]:
    """The partitioner's complaints that it had to gather an array whole to split it anew."""
    ops = re.findall(r'[Ii]nvoluntary full rematerialization.*?op_name="([^"]*)"', log)
    if not ops and re.search('[Ii]nvoluntary full rematerialization', log):
        ops = ['an operation that the compiler does not name']
    return [
        f'involuntary full rematerialisation: {op} is gathered whole to be split anew; constrain it'
        for op in sorted(set(ops))
    ]
