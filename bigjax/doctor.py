"""`bigjax doctor`: is this machine fit to train on? In seconds, and every failure with its cure."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from bigjax.errors import EXIT_DONE, EXIT_USER_ERROR

GIB = 2**30
SECONDS = 120  # the first start of a GPU takes tens of seconds
PACKAGES = ('bigjax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
REINSTALL = "install the pinned versions: make setup, or pip install -c constraints.txt -e '.[dev]'"

PROBE = """
import json, jax, jax.numpy as jnp
corner = (jnp.ones((256, 256)) @ jnp.ones((256, 256)))[0, 0]
assert corner == 256, f'a sum of 256 ones came out as {corner}'
memory = [(device.memory_stats() or {}).get('bytes_limit', 0) for device in jax.local_devices()]
kinds = [device.device_kind for device in jax.devices()]
print(json.dumps({'platform': jax.default_backend(), 'kinds': kinds, 'memory': min(memory)}))
"""


@dataclass(frozen=True)
class Check:
    """One finding, and where something should be done about it, what."""

    name: str
    status: Literal['ok', 'warn', 'fail']
    found: str
    cure: str = ''


def main(workdir: Path) -> int:
    """Prints the checks, a line each: 0, or 78 if one fails."""
    findings = checks(workdir)
    for check in findings:
        line = f'{check.status:4}  {check.name}: {check.found}'
        print(f'{line}; {check.cure}' if check.cure else line)
    return EXIT_USER_ERROR if any(check.status == 'fail' for check in findings) else EXIT_DONE


def checks(workdir: Path) -> list[Check]:
    """All that can be known without training; `workdir` is where a run would write."""
    return [packages(), devices(), memory(), disk(workdir), prepared_data()]


def packages() -> Check:
    """bigjax is installed, and all that is has what it needs, in versions that fit one another."""
    try:
        metadata.version('bigjax')
    except metadata.PackageNotFoundError:
        return Check('packages', 'warn', 'bigjax is not installed, it runs from source', REINSTALL)
    pip = subprocess.run([sys.executable, '-m', 'pip', 'check'], capture_output=True, text=True)
    if pip.returncode != 0:
        found = '; '.join((pip.stdout or pip.stderr).splitlines())
        return Check('packages', 'fail' if pip.stdout else 'warn', found, REINSTALL)
    versions = [f'{name} {metadata.version(name)}' for name in PACKAGES]
    return Check('packages', 'ok', f'python {platform.python_version()}, {", ".join(versions)}')


def devices() -> Check:
    """JAX computes, and on the accelerator where there is one."""
    wanted = os.environ.get('JAX_PLATFORMS', '')
    try:
        seen = _probe_jax()
    except RuntimeError as error:
        found = f'JAX does not run with JAX_PLATFORMS={wanted or "any"}: {error}'
        cure = 'unset JAX_PLATFORMS, or install the extra for that hardware (cuda or tpu)'
        return Check('devices', 'fail', found, REINSTALL if wanted in ('', 'cpu') else cure)
    found = ', '.join(f'{count} x {kind}' for kind, count in Counter(seen['kinds']).items())
    if seen['platform'] != 'cpu':
        return Check('devices', 'ok', f'{found}, {seen["memory"] / GIB:.0f} GiB each')
    if (extra := _accelerator()) is None:
        return Check('devices', 'ok', found)
    found = f'JAX uses {found}, though there is hardware for {extra}'
    if wanted.startswith('cpu'):
        return Check('devices', 'warn', found, 'unset JAX_PLATFORMS to train on it')
    return Check('devices', 'fail', found, f"pip install -c constraints.txt -e '.[{extra}]'")


def _probe_jax() -> dict[str, Any]:
    """JAX's `platform`, the `kinds` of its devices, and the bytes of `memory` that each has.

    In another process, as JAX may crash or wait for ever. Raises: RuntimeError with its last words.
    """
    env = {'JAX_TRACEBACK_FILTERING': 'off', 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', **os.environ}
    command = [sys.executable, '-c', PROBE]
    try:
        probe = subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        hint = 'on a TPU pod, ask on all hosts at once'
        raise RuntimeError(f'no answer in {SECONDS} s; {hint}') from None
    if probe.returncode != 0:
        last_words = probe.stderr.strip() or f'exit code {probe.returncode}'
        raise RuntimeError(last_words.splitlines()[-1])
    return json.loads(probe.stdout.splitlines()[-1])


def _accelerator() -> Literal['cuda', 'tpu'] | None:
    """The extra for the accelerator in this machine, whatever JAX sees."""
    with suppress(OSError, subprocess.TimeoutExpired):
        listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True, timeout=20)
        if listed.stdout.startswith('GPU '):
            return 'cuda'
    if 'TPU_ACCELERATOR_TYPE' in os.environ or Path('/dev/accel0').exists():
        return 'tpu'
    return None


def memory(meminfo: Path = Path('/proc/meminfo')) -> Check:
    """Memory of the host that is free, where the system tells."""
    if not meminfo.exists():
        return Check('memory', 'ok', 'this system does not tell')
    fields = dict(line.split(':') for line in meminfo.read_text().splitlines())
    free = int(fields['MemAvailable'].split()[0]) * 1024
    cure = 'close other programs, or use a smaller batch, model or data set'
    return _judge_free('memory', free, 4 * GIB, cure)


def disk(workdir: Path) -> Check:
    """The run folder, or what it would be made in, takes a file and has room for checkpoints."""
    folder = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        found = f'cannot write in {folder}: {error.strerror}'
        return Check('disk', 'fail', found, 'choose another --workdir')
    free = shutil.disk_usage(folder).free
    return _judge_free('disk', free, 10 * GIB, 'free some space, or choose another --workdir')


def _judge_free(name: str, free: int, enough: int, cure: str) -> Check:
    found = f'{free / GIB:.1f} GiB free'
    if free >= enough:
        return Check(name, 'ok', found)
    return Check(name, 'fail' if free < GIB else 'warn', found, cure)


def prepared_data() -> Check:
    """TFDS data sets that can be read here: those prepared as array_record."""
    folder = Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser()
    prepared = {
        path.parents[1].relative_to(folder).as_posix(): json.loads(path.read_text())
        for path in sorted(folder.rglob('dataset_info.json'))
    }
    unread = [name for name, info in prepared.items() if info.get('fileFormat') != 'array_record']
    if unread:
        found = f'{", ".join(unread)} in {folder}: only array_record is read without TensorFlow'
        return Check('tfds data', 'warn', found, 'bigjax data prepare NAME')
    names = ', '.join(prepared) or 'none prepared (bigjax data prepare NAME)'
    return Check('tfds data', 'ok', f'{names} in {folder}')
