"""What a process feeds to its devices, written down for `verify-resume`, which asks for it by

    BIGJAX_WITNESS=FOLDER:STEP

Then `FOLDER/<pid>.jsonl` gets a line a batch, with 64 bits of BLAKE2b of each of the process's rows
by its number in the global batch, and batch STEP (from 0) is held back while stdin is open:

    {"batch": 7, "rows": {"0": "a1f0...", "1": "77b2..."}}
"""

import json
import os
import sys
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigjax.data.core import Batch
from bigjax.errors import EnvironmentProblem

VARIABLE = 'BIGJAX_WITNESS'


def witness() -> Callable[[int, np.ndarray, Batch], Batch]:
    """A function (batch number, rows [R], their batch) -> the same batch, seen."""
    if VARIABLE not in os.environ:
        return lambda index, rows, batch: batch
    folder, _, held = os.environ[VARIABLE].rpartition(':')
    file = (Path(folder) / f'{os.getpid()}.jsonl').open('w', buffering=1, encoding='utf-8')

    def see(index: int, rows: np.ndarray, batch: Batch) -> Batch:
        if index == int(held):
            sys.stdin.read()  # until a SIGKILL
            raise EnvironmentProblem('verify-resume, which held this run, is gone')
        hashes = {str(row): _hash(batch, at) for at, row in enumerate(rows)}
        file.write(json.dumps({'batch': index, 'rows': hashes}) + '\n')
        return batch

    return see


def _hash(batch: Any, at: int) -> str:
    found = blake2b(digest_size=8)
    for path, leaf in jax.tree.leaves_with_path(batch):
        row = np.ascontiguousarray(leaf[at])
        found.update(f'{jax.tree_util.keystr(path)} {row.dtype} {row.shape}'.encode())
        found.update(row.tobytes())
    return found.hexdigest()
