"""Pretrained weights into our parameters, each shard straight to its device."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from bigjax import schema, trees
from bigjax.data import tokenizers
from bigjax.data.tokenizers import Tokenizer
from bigjax.errors import CheckpointError, ConfigError
from bigjax.interop import gguf, layout, tensors
from bigjax.interop.families import GGUF_PLACES, Places, read_config
from bigjax.interop.layout import Slices, Tensors
from bigjax.models import transformer
from bigjax.models.transformer import Transformer
from bigjax.sharding.rules import parameter_shardings

CONFIG = 'config.json'

BUFFERS = (
    '.attn.bias', '.attn.masked_bias', 'position_ids', 'rotary_emb.inv_freq', 'rope_freqs.weight',
    'cls.predictions.decoder.weight', 'cls.predictions.decoder.bias',
    'cls.seq_relationship.weight', 'cls.seq_relationship.bias',
)  # fmt: skip
"""Ends of names that hold no parameters, copies of some, or BERT's guess of the next sentence."""


class Pretrained(NamedTuple):
    """What a hub folder or a GGUF file holds.

    options: of our Transformer, vocab_size and max_length among them.
    """

    options: Mapping[str, Any]
    places: Places
    tensors: Tensors
    tokenizer: Callable[[], Tokenizer]
    where: str

    @property
    def vocabulary(self) -> int:
        return self.options['vocab_size']

    def has(self, name: str) -> bool:
        """Whether the module `name` of ours, outside of the blocks, is in the files."""
        place = self.places.get(name)
        return place is not None and f'{place.module}.weight' in self.tensors


def is_pretrained(path: Path | str) -> bool:
    """Whether it is for `open_pretrained` to read, or to refuse, rather than a run of ours."""
    path = Path(path).expanduser()
    return path.suffix in ('.gguf', *tensors.PICKLES) or not (path / 'checkpoints').is_dir()


def open_pretrained(path: Path | str) -> Pretrained:
    """Reads what is said, and no weights yet. Raises: ConfigError, CheckpointError."""
    path = Path(path).expanduser()
    tensors.refuse_pickle(path)
    if path.suffix == '.gguf':
        reader = tensors.open_gguf(path)
        said, found = gguf.metadata(reader), tensors.of_gguf(reader)
        _, options = read_config(gguf.hub_config(said, found), str(path))
        return Pretrained(options, GGUF_PLACES, found, partial(gguf.tokenizer, said), str(path))
    if not (path / CONFIG).is_file():
        raise CheckpointError(f'{path}: expected a hub folder with {CONFIG}, or a .gguf file')
    try:
        hub = json.loads((path / CONFIG).read_text())
    except ValueError as error:
        raise ConfigError(f'{path / CONFIG}: expected JSON: {error}') from None
    family, options = read_config(hub, str(path / CONFIG))
    found = tensors.under_hub_names(tensors.of_folder(path), family)
    return Pretrained(options, family.places, found, partial(tokenizers.load, path), str(path))


def model_options(path: Path | str) -> dict[str, Any]:
    """The options of config.model that make the same Transformer, with its first head."""
    return dict(open_pretrained(path).options)


def model_config(pretrained: Pretrained, **options: Any) -> transformer.Config:
    """Our config of the model, with some options replaced. Raises: ConfigError."""
    return schema.build(transformer.Config, {**pretrained.options, **options}, 'config.model')


def make_module(config: transformer.Config, outputs: int) -> Transformer:
    """The module of a config that says its vocabulary, and how long its texts may be."""
    return Transformer(config, config.vocab_size, config.max_length or 1, outputs)


def load(path: Path | str, mesh: Mesh | None = None) -> tuple[Transformer, Any, Tokenizer]:
    """A pretrained model: its Flax module, its parameters, and its tokenizer.

    path: a local hub folder (config.json, safetensors) of the gpt2, bert, llama, mistral or qwen3
    family, or a GGUF file of a Llama. mesh: by default that of `jax.set_mesh`, if there is one.

    `module.apply({'params': params}, tokens)` of int tokens [B, T] gives float32 logits [B, T, V]
    of a decoder, or the last hidden states [B, T, D] of an encoder. Parameters are float32.

    Raises: ConfigError, CheckpointError, DataError, EnvironmentProblem.
    """
    pretrained = open_pretrained(path)
    module = make_module(model_config(pretrained), pretrained.vocabulary)
    return module, read_all(pretrained, module, mesh), pretrained.tokenizer()


def read_all(pretrained: Pretrained, module: Transformer, mesh: Mesh | None = None) -> Any:
    """The parameters of `module`. Raises: CheckpointError for what is missing or left over."""
    params = abstract_params(module, mesh)
    parts = {
        trees.path_name(path): layout.parts(trees.path_name(path), leaf.shape, pretrained.places)
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    wrong = [line for name, found in parts.items() if (line := _lacks(pretrained, name, found))]
    if wrong:
        more = f'; and {len(wrong) - 1} more' if len(wrong) > 1 else ''
        raise CheckpointError(f'{wrong[0]}{more}; is its {CONFIG} of this model?')
    heads = {p.module for key, p in pretrained.places.items() if not key.startswith('block/')}
    known = {part.name for found in parts.values() for part in found}
    known |= {f'{module}.{end}' for module in heads for end in layout.LEAVES.values()}
    unknown = sorted(name for name in pretrained.tensors if name not in known)
    if unknown := [name for name in unknown if not name.endswith(BUFFERS)]:
        raise CheckpointError(
            f'{pretrained.where}: {len(unknown)} tensors are of no parameter, the first '
            f'{unknown[0]}; is its {CONFIG} of this model?'
        )
    return read_params(pretrained, params)[0]


def read_params(pretrained: Pretrained, params: Any, leaves: str = '.*') -> tuple[Any, list[str]]:
    """`params` (arrays, or shapes with shardings) with the leaves that the files hold, in place.

    leaves: a pattern of paths. What does not match it, is not there or has another shape there
    stays as it is; a line says why for each. Raises: ConfigError.
    """
    wanted = trees.compile_pattern(leaves, 'config.init_from.leaves')
    skipped: list[str] = []

    def fill(name: str, leaf: Any) -> Any:
        parts = layout.parts(name, leaf.shape, pretrained.places)
        lacks = _lacks(pretrained, name, parts)
        if lacks or not wanted.search(name):
            skipped.append(lacks or f'{name}: does not match {leaves!r}')
            return leaf
        read = _once(partial(layout.read, parts, pretrained.tensors, leaf.shape))
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, read)

    return trees.map_with_name(fill, params), skipped


def _lacks(pretrained: Pretrained, name: str, parts: list[layout.Part]) -> str | None:
    """What keeps the leaf `name` from being read."""
    if not parts:
        return f'{name}: not in {pretrained.where}'
    for part in parts:
        if part.name not in pretrained.tensors:
            return f'{name}: no tensor {part.name} in {pretrained.where}'
        if (shape := pretrained.tensors[part.name].shape) != part.stored_shape:
            return (
                f'{name}: {part.name} has shape {shape} in {pretrained.where}, expected '
                f'{part.stored_shape}'
            )
    return None


def abstract_params(module: Transformer, mesh: Mesh | None = None) -> Any:
    """Shapes, each with the sharding that the rules give it; without a mesh, on one device."""
    model = transformer.as_model(module, jax.ShapeDtypeStruct((1, 1), np.int32))
    shapes = model.abstract()['params']
    mesh = jax.sharding.get_mesh() if mesh is None else mesh
    if mesh.empty:
        where = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), shapes)
    else:
        where, _ = parameter_shardings(model.axes['params'], shapes, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        where,
    )


def _once(read: Callable[[Slices], np.ndarray]) -> Callable[[Any], np.ndarray]:
    """JAX asks once a device, also where several hold the same shard."""
    shards: dict[str, np.ndarray] = {}  # slices have no hash before Python 3.12

    def shard(index: Slices) -> np.ndarray:
        key = str(index)
        if key not in shards:
            shards[key] = read(index)
        return shards[key]

    return shard


def require_tokens(pretrained: Pretrained, tokenizer: Tokenizer | None) -> None:
    """Raises: ConfigError where the model has no row for some token."""
    if tokenizer is not None and tokenizer.vocab_size > pretrained.vocabulary:
        raise ConfigError(
            f'config.data.tokenizer has {tokenizer.vocab_size} tokens, {pretrained.where} '
            f'{pretrained.vocabulary}; set config.data.tokenizer={pretrained.where}'
        )
