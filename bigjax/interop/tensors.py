"""Named tensors in files: safetensors, whole or sharded, and GGUF. Any slice of them, as float32.

Pickled weights can run code when they are read, and are refused.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from bigjax.errors import CheckpointError, EnvironmentProblem
from bigjax.interop.families import Family
from bigjax.interop.layout import Slices, Tensor, Tensors
from bigjax.safety import child

PICKLES = ('.bin', '.pt', '.pth', '.pkl', '.ckpt')
WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'

OLD = {'LayerNorm.gamma': 'LayerNorm.weight', 'LayerNorm.beta': 'LayerNorm.bias'}
"""Names of BERT's first release, which are still on the hub."""


def refuse_pickle(path: Path) -> None:
    """Raises: CheckpointError for a file of a kind that can run code."""
    if path.suffix in PICKLES:
        raise CheckpointError(
            f'{path}: {path.suffix} files are pickles, which can run code, and are not read; '
            'save the model as safetensors'
        )


def of_folder(folder: Path) -> Tensors:
    """The tensors of a hub folder. Raises: CheckpointError."""
    if (folder / INDEX).is_file():
        try:
            files = sorted(set(json.loads((folder / INDEX).read_bytes())['weight_map'].values()))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f'{folder / INDEX} is damaged: {error}; fetch it again') from None
        paths = [child(folder, str(file), str(folder / INDEX)) for file in files]
        for path in paths:
            refuse_pickle(path)
        return {name: tensor for path in paths for name, tensor in _of_file(path).items()}
    if not (folder / WEIGHTS).is_file():
        for file in sorted(folder.iterdir()):
            refuse_pickle(file)
        raise CheckpointError(f'{folder}: expected {WEIGHTS} or {INDEX}, got neither')
    return _of_file(folder / WEIGHTS)


def _of_file(path: Path) -> Tensors:
    try:
        file = safetensors.safe_open(path, framework='numpy')
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f'{path} cannot be read: {error}; fetch it again') from error

    def tensor(name: str) -> Tensor:
        stored = file.get_slice(name)

        def read(slices: Slices) -> np.ndarray:
            return np.asarray(stored[slices]).astype(np.float32, copy=False)

        return Tensor(tuple(stored.get_shape()), read)

    return {name: tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping


def under_hub_names(found: Tensors, family: Family) -> Tensors:
    """The same under the names that the family's whole models have today."""
    heads = tuple(place.module for place in family.places.values())
    heads = tuple(module for module in heads if not module.startswith(family.prefix))
    bare = not any(name.startswith(family.prefix) for name in found)
    ends = re.compile('|'.join(map(re.escape, OLD)) + '$')

    def hub_name(name: str) -> str:
        name = ends.sub(lambda match: OLD[match[0]], name)
        return family.prefix + name if bare and not name.startswith(heads) else name

    return {hub_name(name): tensor for name, tensor in found.items()}


def open_gguf(path: Path) -> Any:
    """The `gguf` package's view of a file. Raises: EnvironmentProblem, CheckpointError."""
    try:
        import gguf
    except ImportError:
        raise EnvironmentProblem(
            f"{path} needs the package gguf; pip install 'bigjax[hf]'"
        ) from None

    class Reader(gguf.GGUFReader):
        def __setattr__(self, name: str, value: Any) -> None:
            # the same pages, but cutting a vocabulary out of a memmap takes a second more
            super().__setattr__(name, value.view(np.ndarray) if name == 'data' else value)

    try:
        return Reader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise CheckpointError(f'{path} is not a whole GGUF file: {error}') from error


def of_gguf(reader: Any) -> Tensors:
    """Its tensors; rows are dequantised as they are read."""
    from gguf.quants import dequantize

    def tensor(stored: Any) -> Tensor:
        def read(slices: Slices) -> np.ndarray:
            rows = dequantize(stored.data[slices[0]], stored.tensor_type)
            return rows[(slice(None), *slices[1:])]

        return Tensor(tuple(reversed(stored.shape.tolist())), read)

    return {stored.name: tensor(stored) for stored in reader.tensors}


def write_safetensors(
    folder: Path, tensors: Mapping[str, np.ndarray], shard_bytes: int = 5 * 10**9
) -> None:
    """model.safetensors, or as many files and their index as `shard_bytes` asks for."""
    from safetensors.numpy import save_file

    shards: list[dict[str, np.ndarray]] = [{}]
    for name, array in tensors.items():
        held = sum(other.nbytes for other in shards[-1].values())
        if held and held + array.nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = array
    files = [f'model-{i + 1:05}-of-{len(shards):05}.safetensors' for i in range(len(shards))]
    files = [WEIGHTS] if len(shards) == 1 else files
    for file, shard in zip(files, shards, strict=True):
        arrays = {name: np.ascontiguousarray(array) for name, array in shard.items()}
        save_file(arrays, folder / file, metadata={'format': 'pt'})
    if len(shards) > 1:
        where = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        size = sum(array.nbytes for array in tensors.values())
        index = {'metadata': {'total_size': size}, 'weight_map': where}
        (folder / INDEX).write_text(json.dumps(index, indent=2))
