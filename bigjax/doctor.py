"""`bigjax doctor`: is this machine fit to train on? In seconds, and every failure with its cure."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bigjax.errors import EXIT_DONE, EXIT_USER_ERROR

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
GIB = 2**30
MEMORY_FAIL, MEMORY_WARN = 1 * GIB, 4 * GIB
DISK_FAIL, DISK_WARN = 1 * GIB, 10 * GIB
PROBE_SECONDS = 120  # the first start of a GPU takes tens of seconds

BUNDLED = ('breast_cancer.csv', 'diabetes_data_raw.csv.gz', 'digits.csv.gz', 'wine_data.csv')
EXTRAS = ('tensorboard', 'wandb', 'hf', 'prepare')
ACCELERATOR_EXTRAS = ('cuda12', 'cuda12-local', 'cuda13', 'cuda13-local', 'tpu')  # of jax
STYLES = {'ok': 'green', 'warn': 'yellow', 'fail': 'red'}
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
    """Prints the checks, as a table on a terminal and as lines elsewhere: 0, or 78 if one fails."""
    console, findings = Console(), checks(workdir)
    if console.is_terminal:
        console.print(_table(findings))
    else:
        for check in findings:
            line = f'{check.status:4}  {check.name}: {check.found}'
            print(f'{line}; {check.cure}' if check.cure else line)
    return EXIT_USER_ERROR if any(check.status == 'fail' for check in findings) else EXIT_DONE


def checks(workdir: Path) -> list[Check]:
    """All that can be known without training; `workdir` is where a run would write."""
    return [
        python_version(),
        package_versions(),
        devices(),
        memory(),
        disk_space(workdir),
        writable(workdir),
        bundled_data(),
        prepared_data(),
        extras(),
    ]


def python_version() -> Check:
    """The Python is one that every dependency is built for."""
    version = sys.version_info[:2]
    found, low, high = (
        '.'.join(map(str, each)) for each in (version, OLDEST_PYTHON, NEWEST_PYTHON)
    )
    if OLDEST_PYTHON <= version <= NEWEST_PYTHON:
        return Check('python', 'ok', found)
    return Check('python', 'fail', found, f'use Python {low} to {high}: make PYTHON=python{high}')


def package_versions() -> Check:
    """bigjax and all it needs, directly or not, are there in versions that fit one another."""
    if _version('bigjax') is None:
        return Check('packages', 'warn', 'bigjax is not installed, it runs from source', REINSTALL)
    if misfits := _misfits('bigjax'):
        return Check('packages', 'fail', '; '.join(misfits), REINSTALL)
    shown = ('bigjax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
    return Check('packages', 'ok', ', '.join(f'{name} {_version(name)}' for name in shown))


def devices() -> Check:
    """JAX computes, and on the accelerator where there is one."""
    wanted = os.environ.get('JAX_PLATFORMS', '')
    try:
        platform, kinds, memory_bytes = _probe_jax()
    except RuntimeError as error:
        if wanted in ('', 'cpu'):
            return Check('devices', 'fail', f'JAX does not run: {error}', REINSTALL)
        found = f'JAX does not run with JAX_PLATFORMS={wanted}: {error}'
        cure = 'unset JAX_PLATFORMS, or install the extra for that hardware (cuda or tpu)'
        return Check('devices', 'fail', found, cure)

    found = ', '.join(f'{count} x {kind}' for kind, count in Counter(kinds).items())
    if platform != 'cpu':
        return Check('devices', 'ok', f'{found}, {memory_bytes / GIB:.0f} GiB each')
    if (hardware := _accelerator()) is None:
        return Check('devices', 'ok', found)
    found = f'JAX uses {found}, though there is a {hardware}'
    if wanted.startswith('cpu'):
        return Check('devices', 'warn', found, 'unset JAX_PLATFORMS to train on it')
    extra = {'NVIDIA GPU': 'cuda', 'TPU': 'tpu'}[hardware]
    cure = f"install its plugin: .venv/bin/pip install -c constraints.txt -e '.[{extra}]'"
    return Check('devices', 'fail', found, cure)


def memory(meminfo: Path = Path('/proc/meminfo')) -> Check:
    """Memory of the host that is free, where the system tells."""
    try:
        fields = dict(line.split(':') for line in meminfo.read_text().splitlines())
        free = int(fields['MemAvailable'].split()[0]) * 1024
    except (OSError, KeyError):
        return Check('memory', 'ok', 'this system does not tell')
    cure = 'close other programs, or use a smaller batch, model or data set'
    return _judge_free('memory', free, MEMORY_FAIL, MEMORY_WARN, cure)


def disk_space(workdir: Path) -> Check:
    """Free space where checkpoints would go."""
    free = shutil.disk_usage(_nearest_folder(workdir)).free
    cure = 'free some space, or choose another --workdir'
    return _judge_free('disk', free, DISK_FAIL, DISK_WARN, cure)


def writable(workdir: Path) -> Check:
    """The run folder, or the one it would be made in, takes a file."""
    folder = _nearest_folder(workdir)
    cure = 'choose another --workdir'
    if workdir.exists() and not workdir.is_dir():
        return Check('workdir', 'fail', f'{workdir} is a file', cure)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b'bigjax')
    except OSError as error:
        return Check('workdir', 'fail', f'cannot write in {folder}: {error.strerror}', cure)
    return Check('workdir', 'ok', f'{workdir} can be written')


def bundled_data() -> Check:
    """The data sets that need no download: scikit-learn's, and the standard library's source."""
    sklearn = util.find_spec('sklearn')
    folder = (
        Path(sklearn.origin).parent / 'datasets' / 'data' if sklearn and sklearn.origin else None
    )
    missing = [name for name in BUNDLED if folder is None or not (folder / name).is_file()]
    if missing:
        return Check('bundled data', 'fail', f'scikit-learn lacks {", ".join(missing)}', REINSTALL)
    if not Path(os.__file__).is_file():
        cure = 'install a Python with its library as .py files (needed by the stdlib text only)'
        return Check('bundled data', 'warn', "no source of Python's standard library", cure)
    return Check('bundled data', 'ok', 'digits, breast_cancer, wine, diabetes, stdlib')


def prepared_data() -> Check:
    """TFDS data sets that can be read here: those prepared as array_record."""
    folder = Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser()
    formats = dict(_prepared_sets(folder))
    unreadable = sorted(name for name, format in formats.items() if format != 'array_record')
    if unreadable:
        found = f'{", ".join(unreadable)} in {folder}: only array_record is read without TensorFlow'
        return Check('tfds data', 'warn', found, 'bigjax data prepare NAME')
    if not formats:
        return Check('tfds data', 'ok', f'none prepared in {folder} (bigjax data prepare NAME)')
    return Check('tfds data', 'ok', f'{", ".join(sorted(formats))} in {folder}')


def extras() -> Check:
    """Which optional parts are installed; none is needed to train."""
    asked = [Requirement(text) for text in _requires('bigjax')]
    parts = {
        extra: [r.name for r in asked if r.marker and r.marker.evaluate({'extra': extra})]
        for extra in EXTRAS
    }
    there = [extra for extra, names in parts.items() if names and all(map(_version, names))]
    return Check('extras', 'ok', ', '.join(there) or f'none of {", ".join(EXTRAS)}')


def _misfits(root: str) -> list[str]:
    """What `root`, and what it needs in turn, ask of other packages and do not get."""
    misfits: dict[str, None] = {}
    seen, queue = {root}, [root]
    while queue:
        package = queue.pop(0)
        for needed in _needs(package):
            name, found = canonicalize_name(needed.name), _version(needed.name)
            if found is None:
                misfits[f'{package} needs {needed.name}, which is not installed'] = None
            elif not needed.specifier.contains(found, prereleases=True):
                misfits[f'{package} needs {needed.name} {needed.specifier}, not {found}'] = None
            elif name not in seen:
                seen.add(name)
                queue.append(name)
    return list(misfits)


def _needs(package: str) -> Iterator[Requirement]:
    """What the installed `package` needs here; of jax's plugins only those that are installed."""
    for text in _requires(package):
        needed = Requirement(text)
        extras = ACCELERATOR_EXTRAS if _version(needed.name) else ()
        if any(
            needed.marker is None or needed.marker.evaluate({'extra': e}) for e in ('', *extras)
        ):
            yield needed


def _requires(package: str) -> list[str]:
    try:
        return metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _probe_jax() -> tuple[str, list[str], int]:
    """JAX's platform, the kind of each device, and the memory in bytes that each has.

    In another process, as JAX may crash or wait for ever. Raises: RuntimeError with its last words.
    """
    environment = {
        'JAX_TRACEBACK_FILTERING': 'off',
        'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
        **os.environ,
    }
    command = [sys.executable, '-c', PROBE]
    try:
        probe = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PROBE_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f'no answer in {PROBE_SECONDS} s; on a TPU pod, ask on all hosts at once'
        ) from None
    if probe.returncode != 0:
        last_words = probe.stderr.strip().splitlines()[-1:] or [f'exit code {probe.returncode}']
        raise RuntimeError(last_words[0])
    seen = json.loads(probe.stdout.splitlines()[-1])
    return seen['platform'], seen['kinds'], seen['memory']


def _accelerator() -> Literal['NVIDIA GPU', 'TPU'] | None:
    """The accelerator in this machine, whatever JAX sees."""
    try:
        listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        pass
    else:
        if listed.stdout.startswith('GPU '):
            return 'NVIDIA GPU'
    if 'TPU_ACCELERATOR_TYPE' in os.environ or Path('/dev/accel0').exists():
        return 'TPU'
    return None


def _judge_free(name: str, free: int, fail: int, warn: int, cure: str) -> Check:
    found = f'{free / GIB:.1f} GiB free'
    if free >= warn:
        return Check(name, 'ok', found)
    return Check(name, 'fail' if free < fail else 'warn', found, cure)


def _nearest_folder(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())


def _prepared_sets(folder: Path) -> Iterator[tuple[str, str]]:
    """(name or name/config, file format) of each data set that TFDS prepared in `folder`."""
    for path in (*folder.glob('*/*/dataset_info.json'), *folder.glob('*/*/*/dataset_info.json')):
        name = path.parent.parent.relative_to(folder).as_posix()
        yield name, json.loads(path.read_text()).get('fileFormat', 'tfrecord')


def _table(findings: list[Check]) -> Table:
    table = Table('', 'check', 'found', 'cure', box=None, header_style='dim')
    for check in findings:
        status = Text(check.status, style=STYLES[check.status])
        table.add_row(status, check.name, Text(check.found), Text(check.cure))
    return table
