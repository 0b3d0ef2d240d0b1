"""Named tensors in files: safetensors, whole or sharded, and GGUF. Read one at a time, on the host.

Pickled weights can run code when they are read, and are refused.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from bigjax.errors import CheckpointError, EnvironmentProblem

PICKLES = ('.bin', '.pt', '.pth', '.pkl', '.ckpt')
WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'


class Tensors(NamedTuple):
    """The names there are, and how to read one: float32, as it lies in the file."""

    names: frozenset[str]
    read: Callable[[str], np.ndarray]
    where: str


def refuse_pickle(path: Path) -> None:
    """Raises: CheckpointError for a file of a kind that can run code."""
    if path.suffix in PICKLES:
        raise CheckpointError(
            f'{path}: {path.suffix} files are pickles, which can run code, and are not read; '
            'save the model as safetensors'
        )


def open_folder(folder: Path) -> Tensors:
    """The tensors of a hub folder. Raises: CheckpointError."""
    if (folder / INDEX).is_file():
        files = json.loads((folder / INDEX).read_text())['weight_map']
        return open_safetensors({name: folder / file for name, file in files.items()}, str(folder))
    if not (folder / WEIGHTS).is_file():
        for file in sorted(folder.iterdir()):
            refuse_pickle(file)
        raise CheckpointError(f'{folder}: expected {WEIGHTS} or {INDEX}, got neither')
    with _opened(folder / WEIGHTS) as file:
        names = list(file.keys())
    return open_safetensors(dict.fromkeys(names, folder / WEIGHTS), str(folder))


def open_safetensors(files: Mapping[str, Path], where: str) -> Tensors:
    """Tensors by the file that holds them."""

    def read(name: str) -> np.ndarray:
        with _opened(files[name]) as file:
            array = file.get_tensor(name)
        return np.asarray(array).astype(np.float32)

    return Tensors(frozenset(files), read, where)


def _opened(path: Path) -> Any:
    assert ml_dtypes  # its import lets numpy hold bfloat16
    try:
        return safetensors.safe_open(path, framework='numpy')
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f'{path} cannot be read: {error}; fetch it again') from error


def gguf_reader(path: Path) -> Any:
    """The `gguf` package's view of a file. Raises: EnvironmentProblem, CheckpointError."""
    try:
        import gguf
    except ImportError:
        raise EnvironmentProblem(
            f"{path} needs the package gguf; pip install 'bigjax[hf]'"
        ) from None
    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise CheckpointError(f'{path} is not a whole GGUF file: {error}') from error


def open_gguf(reader: Any, where: str) -> Tensors:
    """Its tensors, dequantised as they are read."""
    from gguf.quants import dequantize

    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        array = dequantize(tensor.data, tensor.tensor_type)
        return array.reshape(tuple(reversed(tensor.shape.tolist()))).astype(np.float32, copy=False)

    return Tensors(frozenset(tensors), read, where)
