"""Trained Transformers out: hub folders, plain safetensors, and StableHLO.

Shapes: B batch, T sequence.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bigjax import schema, trees
from bigjax.data import tokenizers
from bigjax.data.tokenizers import Tokenizer
from bigjax.errors import CheckpointError, ConfigError, nearest
from bigjax.interop import layout
from bigjax.interop.families import write_config
from bigjax.interop.tensors import write_safetensors
from bigjax.interop.weights import CONFIG
from bigjax.models.transformer import Transformer

PROGRAM, SIGNATURE = 'model.stablehlo', 'signature.json'
PLATFORMS = ('cpu', 'cuda', 'tpu')
TOLERANCE = 1e-4


class Trained(NamedTuple):
    """A Transformer, its parameters on the host, and the tokenizer if it was trained on text."""

    module: Transformer
    params: Any
    tokenizer: Tokenizer | None


def export(trained: Trained, out: Path, to: str) -> None:
    """Writes the new folder `out`, which has another name until it is whole.

    to: 'hf', a folder of the hub's; 'safetensors', under our own names; 'stablehlo', a program that
        holds its parameters.
    Raises: ConfigError, CheckpointError.
    """
    if to not in WRITERS:
        raise ConfigError(f'--to: no format {to!r}: {nearest(to, WRITERS)}')
    if out.exists():
        raise ConfigError(f'--out: {out} exists, and is not written over; choose another')
    partial = out.with_name(f'{out.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)  # of one that was stopped
    partial.mkdir(parents=True)
    WRITERS[to](trained, partial)
    partial.rename(out)


def _hf(trained: Trained, out: Path) -> None:
    module = trained.module
    predicts = module.config.head == 'tokens'
    tokens = module.outputs if predicts else module.vocabulary  # spare rows stay behind
    family, hub = write_config(module.config, tokens or 0, module.max_length)
    side_by_side: dict[str, list[np.ndarray]] = {}
    for path, leaf in jax.tree.leaves_with_path(trained.params):
        name, values = trees.path_name(path), np.asarray(leaf)
        values = values[:tokens] if name == 'embed/embedding' else values
        found = layout.parts(name, values.shape, family.places)
        for part, layer in zip(found, layout.layers(found, values), strict=True):
            side_by_side.setdefault(part.name, [np.empty(0)] * part.place.parts)
            side_by_side[part.name][part.place.part] = part.written(layer)
    tensors = {name: np.concatenate(parts, axis=-1) for name, parts in side_by_side.items()}
    write_safetensors(out, tensors)
    if module.config.head not in ('tokens', 'none'):
        labels = {str(i): f'LABEL_{i}' for i in range(module.outputs)}
        hub |= {'id2label': labels, 'label2id': {label: int(i) for i, label in labels.items()}}
    special = trained.tokenizer.special if trained.tokenizer else {}
    hub |= {f'{role}_token_id': special.get(role) for role in ('bos', 'eos', 'pad')}
    hub |= {'dtype': 'float32', 'torch_dtype': 'float32'}
    _write_json(out / CONFIG, hub)
    if trained.tokenizer is not None:
        trained.tokenizer.save(out)
        settings = json.loads((out / tokenizers.CONFIG).read_text())
        # else the hub takes the family's own class, which may cut text in another way
        settings.setdefault('tokenizer_class', 'PreTrainedTokenizerFast')
        _write_json(out / tokenizers.CONFIG, settings)


def _safetensors(trained: Trained, out: Path) -> None:
    leaves = jax.tree.leaves_with_path(trained.params)
    write_safetensors(out, {trees.path_name(path): np.asarray(leaf) for path, leaf in leaves})
    module = trained.module
    model = {'name': 'transformer', **schema.to_dict(module.config)}
    _write_json(out / CONFIG, {'model': model, 'outputs': module.outputs})
    if trained.tokenizer is not None:
        trained.tokenizer.save(out)


def _stablehlo(trained: Trained, out: Path) -> None:
    """Raises: ConfigError, and CheckpointError if what was written computes something else."""
    config = dataclasses.replace(trained.module.config, attention_implementation='dense')
    if config.experts is not None and config.capacity_factor is not None:
        raise ConfigError(
            'config.model.capacity_factor: expected None in a program for texts of any length, got '
            f'{config.capacity_factor}; export to safetensors'
        )
    module = trained.module.clone(config=config)
    masked = config.attention == 'bidirectional'

    def apply(tokens: Any, *mask: Any) -> Any:
        inputs = {'tokens': tokens, 'mask': mask[0]} if masked else tokens
        return module.apply({'params': trained.params}, inputs)

    batch, length = jax.export.symbolic_shape('batch, length')
    shapes = [jax.ShapeDtypeStruct((batch, length), dtype) for dtype in (np.int32, bool)]
    program = jax.export.export(jax.jit(apply), platforms=PLATFORMS)(*shapes[: 1 + masked])
    (out / PROGRAM).write_bytes(program.serialize())
    again = jax.export.deserialize(bytearray((out / PROGRAM).read_bytes()))
    for shape in ((1, 2), (3, min(5, module.max_length))):
        tokens = np.arange(np.prod(shape), dtype=np.int32).reshape(shape) % module.outputs
        inputs = [tokens, tokens % 3 < 2][: 1 + masked]
        off = float(abs(again.call(*inputs) - apply(*inputs)).max())
        if not off < TOLERANCE:
            raise CheckpointError(f'{out / PROGRAM} is {off:g} off on tokens {shape}; report this')
    _write_json(
        out / SIGNATURE,
        {
            'inputs': [str(aval) for aval in program.in_avals],
            'outputs': [str(aval) for aval in program.out_avals],
            'names': ['tokens', 'mask'][: 1 + masked],
            'max_length': module.max_length,
            'platforms': PLATFORMS,
            'jax': jax.__version__,
            'call': "jax.export.deserialize(bytearray(open('model.stablehlo', 'rb').read())).call",
        },
    )
    if trained.tokenizer is not None:
        trained.tokenizer.save(out)


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2))


WRITERS: dict[str, Callable[[Trained, Path], None]] = {
    'hf': _hf,
    'safetensors': _safetensors,
    'stablehlo': _stablehlo,
}
