"""Models out: a hub folder that transformers loads, our leaves as safetensors, or StableHLO.

A model belongs to a family of the hub where its config, said in the hub's words and read again, is
the same: there is no list of what can be said.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax import export as jax_export
from safetensors.numpy import save_file

from bigjax import schema, trees
from bigjax.data.tokenizers import Tokenizer
from bigjax.errors import CheckpointError, ConfigError
from bigjax.interop.families import FAMILIES, Family
from bigjax.interop.tensors import INDEX, WEIGHTS
from bigjax.models.core import Model
from bigjax.models.transformer import Config

Format = Literal['hf', 'safetensors', 'stablehlo']
SHARD_BYTES = 5 * 10**9
TRAINING = {
    'dropout', 'attention_dropout', 'stochastic_depth', 'attention_implementation', 'scan', 'remat',
    'head', 'pooler', 'head_transform', 'vocab_size', 'max_length', 'kv_heads', 'head_dim', 'mlp',
}  # fmt: skip
"""Fields that do not change the function, or are compared by what follows from them."""


def to_hub(config: Config, params: Any, tokenizer: Tokenizer | None, out: Path) -> None:
    """Writes a folder for `AutoModel...from_pretrained`. Raises: ConfigError."""
    params = dict(params)
    vocabulary = len(params['embed']['embedding'])
    table = params.get('positions')
    longest = len(table['embedding']) if table else config.max_length or 2048
    name, family, hub = _family(config, vocabulary, longest)
    tensors = _joined(_hub_tensors(family, params))
    if name == 'bert' and 'classifier.bias' in tensors:
        hub['num_labels'] = len(tensors['classifier.bias'])
    _new_folder(out)
    (out / 'config.json').write_text(json.dumps(hub, indent=2))
    _save(tensors, out)
    if tokenizer is not None:
        tokenizer.save(out)


def _family(config: Config, vocabulary: int, longest: int) -> tuple[str, Family, dict[str, Any]]:
    """The family that says all of the config. Raises: ConfigError naming what none can say."""
    closest: list[str] | None = None
    for name, family in FAMILIES.items():
        try:
            hub = family.write_config(config, vocabulary, longest)
            back = schema.build(Config, family.read_config(hub), 'config.model')
        except ConfigError:
            continue
        differences = _differences(config, back)
        if not differences:
            return name, family, hub
        if closest is None or len(differences) < len(closest):
            closest = [f'{name} has {difference}' for difference in differences]
    raise ConfigError(
        f'no family of the hub ({", ".join(FAMILIES)}) can say config.model: '
        f'{"; ".join((closest or ["its activation"])[:3])}; export to stablehlo or safetensors'
    )


def _differences(ours: Config, back: Config) -> list[str]:
    lines = [
        f'{field.name}={getattr(back, field.name)!r}, not {getattr(ours, field.name)!r}'
        for field in fields(Config)
        if field.name not in TRAINING and getattr(ours, field.name) != getattr(back, field.name)
    ]
    for name in ('key_heads', 'head_size', 'hidden'):
        if getattr(ours, name) != getattr(back, name):
            lines.append(f'{name}={getattr(back, name)}, not {getattr(ours, name)}')
    encodes = back.attention == 'bidirectional'
    heads = {
        'none': encodes,
        'tokens': ours.head_transform == encodes,
        'first': encodes and ours.pooler,
    }
    if not heads.get(ours.head, False):
        lines.append(f'no such head {ours.head!r}')
    return lines


def _hub_tensors(family: Family, params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Names, with the part behind `#`, and matrices as they lie on the hub."""
    for path, leaf in _unstacked(params):
        layer = re.match(r'block_(\d+)/', path)
        pattern = path.replace(layer[0], 'block_{i}/') if layer else path
        name = family.tensors[pattern].replace('{i}', layer[1] if layer else '')
        whole = name if name.startswith(('lm_head', 'cls.', 'classifier')) else None
        name = whole or family.prefix + name.removeprefix(family.prefix)
        if path.endswith('kernel'):
            rows = math.prod(leaf.shape[:2]) if path.endswith('attention/out/kernel') else len(leaf)
            leaf = leaf.reshape(rows, -1)
            yield name, leaf if family.columns and layer else leaf.T
        else:
            yield name, leaf if path.endswith('embedding') else leaf.reshape(-1)


def _unstacked(params: Any) -> Iterator[tuple[str, np.ndarray]]:
    for path, leaf in zip(trees.names(params), jax.tree.leaves(params), strict=True):
        if path.startswith('blocks/'):
            for index in range(len(leaf)):
                yield path.replace('blocks/', f'block_{index}/'), np.asarray(leaf[index])
        else:
            yield path, np.asarray(leaf)


def _joined(tensors: Iterator[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Parts of one tensor side by side."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in tensors:
        whole, _, part = name.partition('#')
        parts.setdefault(whole, {})[part] = array
    return {
        name: np.ascontiguousarray(np.concatenate([some[part] for part in sorted(some)], axis=-1))
        for name, some in parts.items()
    }


def _save(tensors: Mapping[str, np.ndarray], out: Path) -> None:
    """One file, or several of at most SHARD_BYTES with an index."""
    files: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in tensors.items():
        if size and size + array.nbytes > SHARD_BYTES:
            files.append({})
            size = 0
        files[-1][name] = array
        size += array.nbytes
    metadata = {'format': 'pt'}
    if len(files) == 1:
        save_file(files[0], out / WEIGHTS, metadata)
        return
    where: dict[str, str] = {}
    for index, part in enumerate(files):
        file = f'model-{index + 1:05}-of-{len(files):05}.safetensors'
        save_file(part, out / file, metadata)
        where |= dict.fromkeys(part, file)
    total = sum(array.nbytes for array in tensors.values())
    index_text = {'metadata': {'total_size': total}, 'weight_map': where}
    (out / INDEX).write_text(json.dumps(index_text))


def to_safetensors(config: Any, params: Any, tokenizer: Tokenizer | None, out: Path) -> None:
    """Writes our own leaves by their paths, and the run's config as JSON."""
    _new_folder(out)
    (out / 'config.json').write_text(json.dumps(schema.to_dict(config), indent=2))
    leaves = zip(trees.names(params), jax.tree.leaves(params), strict=True)
    _save({name: np.asarray(leaf) for name, leaf in leaves}, out)
    if tokenizer is not None:
        tokenizer.save(out)


def to_stablehlo(model: Model, params: Any, length: int, out: Path) -> None:
    """Writes `model.stablehlo`: int32 tokens [B, length], B free, to outputs; weights inside.

    `jax.export.deserialize(data).call(tokens)` runs it without our code. Checked before it is kept:
    Raises: CheckpointError if what was written computes something else.
    """
    params = jax.tree.map(np.asarray, params)  # whole, in the file

    def apply(tokens: Any) -> jax.Array:
        return model.apply({'params': params}, tokens)[0]

    (batch,) = jax_export.symbolic_shape('b')
    tokens = jax.ShapeDtypeStruct((batch, length), np.int32)
    data = jax_export.export(jax.jit(apply))(tokens).serialize()
    rng = np.random.default_rng(0)
    again = jax_export.deserialize(data)
    vocabulary = len(params['embed']['embedding'])
    for rows in (1, 3):
        example = rng.integers(vocabulary, size=(rows, length)).astype(np.int32)
        error = float(np.abs(again.call(example) - apply(example)).max())
        if not error < 1e-4:
            raise CheckpointError(f'{out}: the exported model is {error} off; nothing was written')
    _new_folder(out)
    (out / 'model.stablehlo').write_bytes(data)
    signature = {'inputs': f'int32[b, {length}]', 'outputs': str(again.out_avals[0])}
    (out / 'signature.json').write_text(json.dumps(signature, indent=2))


def _new_folder(out: Path) -> None:
    """Raises: ConfigError where there is something already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f'--out: {out} is there already; choose another')
    out.mkdir(parents=True, exist_ok=True)
