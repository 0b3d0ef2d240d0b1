"""The runs of a study: each a point made concrete, with an id that is its config's own."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigjax import config_file, schema
from bigjax.config import Config
from bigjax.errors import ConfigError
from bigjax.study import ledger
from bigjax.study.points import CONFIG, Point
from bigjax.train.progress import number


class Job(NamedTuple):
    """A point made concrete: the config file, with its argument, and what it overrides there."""

    id: str
    config: str
    overrides: dict[str, Any]

    def folder(self, study: Path) -> Path:
        """Of its run."""
        return study / ledger.RUNS / self.id

    def arguments(self, study: Path) -> list[str]:
        """Of `bigjax train`."""
        flags = [
            f'--config.{key}={config_file.format_value(v)}' for key, v in self.overrides.items()
        ]
        return [f'--config={self.config}', f'--workdir={self.folder(study)}', *flags]


def run_id(config: Config) -> str:
    """The same for equal configs, however they were written; fields that nobody sets do not count,
    so that it outlives a new one."""
    stated = schema.to_dict(config, with_defaults=False)
    canonical = json.dumps(stated, sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def plan(
    points: Iterable[Point], folder: Path, overrides: Sequence[tuple[str, str]] = ()
) -> list[Job]:
    """The runs that the points ask for, each once. Their config file is `config.py` of `folder`
    unless they name another; `overrides`, as typed, go on top of all. Raises: ConfigError."""
    jobs: dict[str, Job] = {}
    typed = {key: _plain(config_file.parse_value(text)) for key, text in overrides}
    for index, point in enumerate(points):
        values = {key: _plain(value) for key, value in point.items() if key != CONFIG} | typed
        config = _config_file(str(point.get(CONFIG, 'config.py')), folder)
        flags = [(key, config_file.format_value(value)) for key, value in values.items()]
        try:
            job = Job(run_id(config_file.load(config, flags)), config, values)
        except ConfigError as error:
            raise ConfigError(f'point {index} ({point}): {error}') from error
        jobs.setdefault(job.id, job)
    return list(jobs.values())


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, tuples as lists: what JSON and a command line can say."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _config_file(name: str, folder: Path) -> str:
    path, colon, argument = name.partition(':')
    here = folder / path
    return f'{here if here.is_file() else path}{colon}{argument}'


def varying(overrides: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which some of them differ, in the order in which they turn up."""
    keys = dict.fromkeys(key for one in overrides for key in one)
    return [key for key in keys if any(one.get(key) != overrides[0].get(key) for one in overrides)]


def label(values: Mapping[str, Any], keys: Sequence[str]) -> str:
    """`learning_rate=0.1 seed=0`: the last part of each key that is there."""
    return ' '.join(
        f'{key.rpartition(".")[2]}={number(v) if isinstance(v := values[key], float) else v}'
        for key in keys
        if key in values
    )
