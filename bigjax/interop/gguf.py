"""Llama models in GGUF, the format of llama.cpp: their config, tensor names and tokenizer."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from bigjax.data.tokenizers import Library
from bigjax.errors import ConfigError
from bigjax.interop.families import LLAMA, Options

NAMES = {
    'model.embed_tokens': 'token_embd',
    'model.norm': 'output_norm',
    'lm_head': 'output',
    'input_layernorm': 'attn_norm',
    'post_attention_layernorm': 'ffn_norm',
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output',
    'mlp.gate_proj': 'ffn_gate',
    'mlp.up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down',
}
"""The hub's modules -> llama.cpp's."""

DIGITS, WORDS = (
    r'\p{N}',
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
    ),
)
SPLITS: dict[str, tuple[str, ...]] = {
    'gpt-2': (),
    'smollm': (DIGITS,),
    'llama-bpe': (WORDS,),
}
"""What `tokenizer.ggml.pre` names: expressions that cut text before GPT-2's bytes and words."""

CONTROL, USER_DEFINED = 3, 4


def fields(reader: Any) -> dict[str, Any]:
    """The metadata as plain values. Raises: ConfigError unless it is of a Llama."""
    found = {name: field.contents() for name, field in reader.fields.items()}
    kind = found.get('general.architecture')
    if kind != 'llama':
        raise ConfigError(f'general.architecture: expected llama, got {kind!r}')
    if any(tensor.name == 'rope_freqs.weight' for tensor in reader.tensors):
        raise ConfigError('rope_freqs.weight: scaled rotary frequencies are not read from GGUF')
    return found


def options(found: Mapping[str, Any], tied: bool) -> Options:
    """The options of our model."""
    heads = found['llama.attention.head_count']
    return {
        'layers': found['llama.block_count'],
        'width': found['llama.embedding_length'],
        'heads': heads,
        'kv_heads': found.get('llama.attention.head_count_kv', heads),
        'head_dim': found.get('llama.rope.dimension_count'),
        'mlp': found['llama.feed_forward_length'],
        'activation': 'swiglu',
        'norm': 'rms',
        'norm_epsilon': found['llama.attention.layer_norm_rms_epsilon'],
        'bias': False,
        'positions': 'rope',
        'rope_base': found.get('llama.rope.freq_base', 10_000.0),
        'tied': tied,
    }


def tensor_names() -> dict[str, str]:
    """Our leaves -> names in a GGUF file."""

    def rename(name: str) -> str:
        name = re.sub(r'^model\.layers\.', 'blk.', name)
        module = name.removesuffix('.weight').removeprefix('blk.{i}.')
        return name.replace(module, NAMES[module])

    return {leaf: rename(name) for leaf, name in LLAMA.tensors.items()}


def in_halves(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows [H * C, D] of queries or keys whose rotated pairs are neighbours, as llama.cpp has
    them, in the order that we and the hub have: first halves, then second halves."""
    pairs = matrix.reshape(heads, -1, 2, matrix.shape[-1])
    return pairs.swapaxes(1, 2).reshape(matrix.shape)


def tokenizer(found: Mapping[str, Any]) -> Library:
    """Byte-level BPE from the metadata. Raises: ConfigError for another kind."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    model, pre = found.get('tokenizer.ggml.model'), found.get('tokenizer.ggml.pre', 'gpt-2')
    if model != 'gpt2' or pre not in SPLITS:
        raise ConfigError(
            f'tokenizer.ggml: expected model gpt2 with pre one of {", ".join(SPLITS)}, got '
            f'{model!r} with {pre!r}; take the model from its hub folder'
        )
    tokens = found['tokenizer.ggml.tokens']
    merges = [tuple(merge.split(' ')) for merge in found['tokenizer.ggml.merges']]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocabulary, merges))
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre != 'llama-bpe')
    cuts = [pre_tokenizers.Split(Regex(split), 'isolated') for split in SPLITS[pre]]
    made.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytewise])
    made.decoder = decoders.ByteLevel()
    kinds = found.get('tokenizer.ggml.token_type', [])
    marked = [(t, kind) for t, kind in zip(tokens, kinds, strict=False)]
    made.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, kind in marked if kind == CONTROL]
    )
    made.add_tokens([AddedToken(t, normalized=False) for t, kind in marked if kind == USER_DEFINED])
    roles = {'bos': 'bos', 'eos': 'eos', 'unk': 'unknown', 'pad': 'padding'}
    ids = {role: found.get(f'tokenizer.ggml.{name}_token_id') for role, name in roles.items()}
    return Library(made, {role: tokens[id] for role, id in ids.items() if id is not None})
