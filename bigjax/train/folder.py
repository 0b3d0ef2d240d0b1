"""The run folder: whose it is, and what made it. Nothing in it is overwritten by another config."""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from bigjax import config as configs
from bigjax import safety, schema
from bigjax.config import Config
from bigjax.data import tokenizers
from bigjax.data.tokenizers import Tokenizer
from bigjax.errors import ConfigError, EnvironmentProblem
from bigjax.sharding import hosts
from bigjax.train.writers import replace_file

CONFIG, ENVIRONMENT, TOKENIZER = 'config.json', 'env.json', 'tokenizer'

WRITE_SECONDS = 300

MAY_CHANGE = (
    'mesh', 'sinks', 'checkpoint', 'data.prefetch', 'eval', 'train.log_every',
    'train.early_stopping',
)  # fmt: skip
"""Sections that a resumed run may have otherwise: they do not change what is computed."""


def claim(workdir: Path, config: Config) -> None:
    """Makes `workdir` this config's own. Process 0 writes; the others look whether they see it.

    Raises: ConfigError if the folder holds a run of another config, with the fields that differ;
        EnvironmentProblem if it cannot be written, or is not the same folder to all processes.
    """
    plain = schema.to_dict(config)
    hosts.first('claim', partial(_claim, workdir, plain), WRITE_SECONDS)
    if hosts.leads():
        return
    path = workdir / CONFIG
    if not _appears(path):
        raise EnvironmentProblem(
            f'{socket.gethostname()} does not see {path}, which process 0 wrote; expected a '
            '--workdir on a file system that all processes share'
        )
    _refuse_another(workdir, plain)


def _appears(path: Path, seconds: float = 30) -> bool:
    """Whether `path` is there; a network file system may be late to show it."""
    until = time.monotonic() + seconds
    while not path.is_file() and time.monotonic() < until:
        time.sleep(0.5)
    return path.is_file()


def _claim(workdir: Path, plain: dict[str, Any]) -> None:
    path = workdir / CONFIG
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            _refuse_another(workdir, plain)
        replace_file(path, json.dumps(plain, indent=2).encode())
        replace_file(workdir / ENVIRONMENT, json.dumps(environment(), indent=2).encode())


@contextmanager
def writing(workdir: Path) -> Iterator[None]:
    """Raises: EnvironmentProblem where the body cannot write files in `workdir`."""
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(
            f'cannot write run folder {workdir}: {error.strerror}; choose another --workdir'
        ) from error


def require_space(workdir: Path, needed: int) -> None:
    """Raises: EnvironmentProblem if the disk of `workdir` has no room for `needed` bytes more."""
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise EnvironmentProblem(
            f'{workdir} has {free / 1e6:,.0f} MB of disk left; expected {needed / 1e6:,.0f} MB for '
            'a checkpoint beside those there; delete something, or choose another --workdir'
        )


def claim_tokenizer(workdir: Path, tokenizer: Tokenizer | None) -> None:
    """Keeps the tokenizer of the run's text beside it; process 0 writes.

    Raises: ConfigError if the run in `workdir` was trained with another one.
    """
    hosts.first('tokenizer', partial(_claim_tokenizer, workdir, tokenizer), WRITE_SECONDS)


def _claim_tokenizer(workdir: Path, tokenizer: Tokenizer | None) -> None:
    place = workdir / TOKENIZER
    if tokenizer is None:
        return
    if place.is_dir():
        require_tokenizer(place, tokenizer)
        return
    partial = workdir / f'{TOKENIZER}.partial'
    tokenizer.save(partial)
    partial.rename(place)


def require_tokenizer(place: Path, tokenizer: Tokenizer) -> None:
    """Raises: ConfigError unless the tokenizer kept in `place` is this one."""
    if tokenizers.load(place).fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f'{place} is another tokenizer than that of config.data: its tokens mean other text; '
            f'set config.data.tokenizer={place}'
        )


def saved_config(workdir: Path) -> Config:
    """The config of the run in `workdir`. Raises: ConfigError."""
    path = workdir / CONFIG
    if not path.is_file():
        raise ConfigError(f'no run in {workdir}: expected a folder with {CONFIG}; train first')
    try:
        plain = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(
            f'{path} is damaged: {error}; bring it back from a copy, or train in another --workdir'
        ) from None
    if not isinstance(plain, dict):
        raise ConfigError(f'{path}: expected the sections of a config, got {plain!r}')
    return configs.resolve(plain)


def environment() -> dict[str, Any]:
    """What this process runs on: versions, code, devices, command."""
    packages = ('bigjax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
    return {
        'versions': {'python': platform.python_version(), **{p: _version(p) for p in packages}},
        'git_commit': _git_commit(),
        'command': ['bigjax', *map(safety.redacted, sys.argv[1:])],
        'platform': platform.platform(),
        'devices': [device.device_kind for device in jax.devices()],
        'processes': jax.process_count(),
        'hosts': hosts.names(),
        'cpus': os.cpu_count(),
    }


def _refuse_another(workdir: Path, new: dict[str, Any]) -> None:
    old = schema.to_dict(saved_config(workdir))  # with defaults for fields that it did not know
    changes = {
        key: values
        for key, values in configs.difference(old, new).items()
        if not f'{key}.'.startswith(tuple(f'{section}.' for section in MAY_CHANGE))
    }
    if changes:
        lines = [f'{key}: {there!r} there, {here!r} here' for key, (there, here) in changes.items()]
        raise ConfigError(
            f'{workdir} holds a run of another config ({"; ".join(lines[:4])}); '
            'choose another --workdir or the same config'
        )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the code, marked `+` if the tree has changes; None outside a checkout."""
    command = ['git', 'describe', '--always', '--abbrev=12', '--dirty=+']
    folder = Path(__file__).parent
    with suppress(OSError, subprocess.TimeoutExpired):
        git = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=5)
        return git.stdout.strip() or None
    return None
