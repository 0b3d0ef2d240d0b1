"""Pretrained weights into our parameters, leaf by leaf, each straight to its place on the mesh."""

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from bigjax import schema, trees
from bigjax.data import tokenizers
from bigjax.data.tokenizers import Tokenizer
from bigjax.errors import CheckpointError, ConfigError
from bigjax.interop import families, gguf, tensors
from bigjax.models import transformer
from bigjax.models.transformer import Transformer
from bigjax.sharding.rules import parameter_shardings

EXTRA = ('lm_head.weight', 'cls.predictions.decoder.weight', 'cls.predictions.decoder.bias')
"""Copies of a tied table, and what is not used of a head."""


class Pretrained(NamedTuple):
    """What a hub folder or a GGUF file says of a model.

    options: of our Transformer. leaf: the value of an unstacked leaf by its path and shape; None
    where the files hold no such parameter.
    """

    options: families.Options
    vocabulary: int
    tokenizer: Callable[[], Tokenizer]
    leaf: Callable[[str, tuple[int, ...]], np.ndarray | None]
    where: str


def open_pretrained(path: Path | str) -> Pretrained:
    """Reads what is said, and no weights yet. Raises: ConfigError, CheckpointError."""
    path = Path(path).expanduser()
    tensors.refuse_pickle(path)
    if path.suffix == '.gguf':
        return _of_gguf(path)
    if not (path / 'config.json').is_file():
        raise CheckpointError(f'{path}: expected a hub folder with config.json, or a .gguf file')
    hub = json.loads((path / 'config.json').read_text())
    family = families.of_hub(hub, f'{path}/config.json')
    found = tensors.open_folder(path)
    _refuse_unknown(family, found)
    leaf = functools.partial(_leaf, found, family.tensors, family.prefix, family.columns)
    options = family.read_config(hub)
    vocabulary = hub['vocab_size']
    return Pretrained(
        options, vocabulary, functools.partial(tokenizers.load, path), leaf, found.where
    )


def _of_gguf(path: Path) -> Pretrained:
    reader = tensors.gguf_reader(path)
    said = gguf.fields(reader)
    found = tensors.open_gguf(reader, str(path))
    options = gguf.options(said, tied='output.weight' not in found.names)
    heads = {'attn_q': options['heads'], 'attn_k': options['kv_heads']}

    def read(name: str) -> np.ndarray:
        part = name.split('.')[-2]
        return gguf.in_halves(found.read(name), heads[part]) if part in heads else found.read(name)

    leaf = functools.partial(_leaf, found._replace(read=read), gguf.tensor_names(), '', False)
    tokens = len(said['tokenizer.ggml.tokens'])
    return Pretrained(options, tokens, lambda: gguf.tokenizer(said), leaf, str(path))


def _leaf(
    found: tensors.Tensors,
    names: Mapping[str, str],
    prefix: str,
    columns: bool,
    leaf: str,
    shape: tuple[int, ...],
) -> np.ndarray | None:
    """One of our leaves. Raises: CheckpointError for a tensor of another shape."""
    layer = re.match(r'block_(\d+)/', leaf)
    pattern = leaf.replace(layer[0], 'block_{i}/') if layer else leaf
    if pattern not in names:
        return None
    name, _, part = names[pattern].replace('{i}', layer[1] if layer else '').partition('#')
    spellings = (name, f'{prefix}{name}', name.removeprefix(prefix))
    there = next((spelling for spelling in spellings if spelling in found.names), None)
    if there is None:
        return None
    array = found.read(there)
    if part:
        array = np.split(array, 3, axis=-1)[int(part)]
    if leaf.endswith('kernel') and not (columns and pattern.startswith('block')):
        array = array.T
    if array.size != np.prod(shape) or (array.ndim == 2 and array.shape[0] not in _rows(shape)):
        raise CheckpointError(
            f'{found.where}: tensor {there} has shape {list(array.shape)}, expected one for '
            f'{leaf} {list(shape)}; is config.json of this model?'
        )
    return array.reshape(shape)


def _rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Rows of the matrix that a kernel of this shape is, whichever axes it contracts."""
    return tuple(int(np.prod(shape[:axis])) for axis in range(1, len(shape)))


def _refuse_unknown(family: families.Family, found: tensors.Tensors) -> None:
    """Raises: CheckpointError for tensors that no model of the family has."""
    known = {re.sub(r'#\d', '', name) for name in family.tensors.values()} | set(EXTRA)
    known |= {f'{family.prefix}{name}' for name in known}
    known |= {name.removeprefix(family.prefix) for name in known}
    unknown = [
        name
        for name in sorted(found.names)
        if re.sub(r'\.\d+\.', '.{i}.', name) not in known and not name.endswith(family.ignored)
    ]
    if unknown:
        raise CheckpointError(
            f'{found.where}: {len(unknown)} tensors are not part of such a model, the first '
            f'{unknown[0]}; only its plain variants are supported'
        )


def model_config(pretrained: Pretrained, **options: Any) -> transformer.Config:
    """Our config of the model, with some options replaced. Raises: ConfigError."""
    return schema.build(transformer.Config, {**pretrained.options, **options}, 'config.model')


def load(path: Path | str) -> tuple[Transformer, Any, Tokenizer]:
    """A pretrained model: its Flax module, its parameters, and its tokenizer.

    path: a local hub folder (config.json, safetensors) of the gpt2, llama or bert family, or a GGUF
    file of a Llama. `module.apply({'params': params}, tokens)` of int tokens [B, T] gives float32
    logits [B, T, V] of a decoder, or the last hidden states [B, T, D] of an encoder. Parameters are
    float32 and lie on the mesh of `jax.set_mesh`, if there is one.

    Raises: ConfigError, CheckpointError, DataError, EnvironmentProblem.
    """
    pretrained = open_pretrained(path)
    config = model_config(pretrained)
    module = Transformer(
        config, config.vocab_size or pretrained.vocabulary, config.max_length or 1,
        pretrained.vocabulary, jnp.float32,
    )  # fmt: skip
    model = transformer.as_model(module, jax.ShapeDtypeStruct((1, 1), np.int32))
    shapes = model.abstract()['params']
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        where = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), shapes)
    else:
        where, _ = parameter_shardings(model.axes['params'], shapes, mesh)
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        where,
    )
    params, missing = read_params(pretrained, placed)
    if missing:
        raise CheckpointError(
            f'{pretrained.where}: {len(missing)} parameters are not in it, the first {missing[0]}'
        )
    return module, params, pretrained.tokenizer()


def read_params(pretrained: Pretrained, params: Any, leaves: str = '.*') -> tuple[Any, list[str]]:
    """`params` (arrays, or shapes with shardings) with the leaves that the files hold, in place.

    leaves: a pattern of paths; others stay as they are. Returns the paths that do, too. A leaf is
    read when its first shard is asked for, a layer at a time where layers are stacked.
    Raises: ConfigError, CheckpointError.
    """
    wanted = trees.compile_pattern(leaves, 'config.init_from.leaves')
    missing: list[str] = []

    def fill(name: str, leaf: Any) -> Any:
        value = _value(pretrained, name, leaf.shape) if wanted.search(name) else None
        if value is None:
            missing.append(name)
            return leaf
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, value)

    return trees.map_with_name(fill, params), missing


def _value(
    pretrained: Pretrained, name: str, shape: tuple[int, ...]
) -> Callable[[Any], np.ndarray] | None:
    """From the index of a shard to its values."""
    if not name.startswith('blocks/'):
        array = pretrained.leaf(name, shape)
        return None if array is None else lambda index: array[index]

    @functools.lru_cache(maxsize=1)
    def layer(index: int) -> np.ndarray:
        found = pretrained.leaf(name.replace('blocks/', f'block_{index}/'), shape[1:])
        if found is None:
            raise CheckpointError(f'{pretrained.where}: no {name} of layer {index}')
        return found

    if pretrained.leaf(name.replace('blocks/', 'block_0/'), shape[1:]) is None:
        return None

    def read(index: Any) -> np.ndarray:
        chosen = range(*index[0].indices(shape[0]))
        return np.stack([layer(number)[index[1:]] for number in chosen])

    return read


def require_tokens(pretrained: Pretrained, tokenizer: Tokenizer | None) -> None:
    """Raises: ConfigError where the model has no row for some token."""
    if tokenizer is not None and tokenizer.vocab_size > pretrained.vocabulary:
        raise ConfigError(
            f'config.data.tokenizer has {tokenizer.vocab_size} tokens, {pretrained.where} '
            f'{pretrained.vocabulary}; set config.data.tokenizer={pretrained.where}'
        )
