"""Llama models in GGUF, the format of llama.cpp: their config and tokenizer."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bigjax.data.tokenizers import Library
from bigjax.errors import ConfigError
from bigjax.interop.layout import Tensor, Tensors
from bigjax.nn.positions import Frequencies, Scaling

FIELDS = {
    'num_hidden_layers': 'block_count',
    'hidden_size': 'embedding_length',
    'intermediate_size': 'feed_forward_length',
    'num_attention_heads': 'attention.head_count',
    'num_key_value_heads': 'attention.head_count_kv',
    'head_dim': 'rope.dimension_count',
    'rms_norm_eps': 'attention.layer_norm_rms_epsilon',
    'max_position_embeddings': 'context_length',
    'rope_theta': 'rope.freq_base',
}
"""Of the hub's config.json -> of llama.cpp."""

DIGIT = r'\p{N}'
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS|"
    r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
SPLITS: dict[str, tuple[tuple[str, ...], bool]] = {
    'gpt-2': ((), True),
    'smollm': ((DIGIT,), True),
    'llama-bpe': ((WORDS.replace('NUMBERS', r'\p{N}{1,3}'),), False),
    'qwen2': ((WORDS.replace('NUMBERS', DIGIT),), False),
}
"""What `tokenizer.ggml.pre` names: expressions that cut text, and whether GPT-2's does so next."""

LLAMA3: dict[str, Any] = {
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
}
"""Of every Llama 3.x: GGUF holds what comes of them, not the numbers themselves."""

CONTROL, USER_DEFINED = 3, 4


def metadata(reader: Any) -> dict[str, Any]:
    """All that a file says, as plain values."""
    return {name: field.contents() for name, field in reader.fields.items()}


def hub_config(said: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """What the config.json of the same model says. Raises: ConfigError unless it is a Llama."""
    kind = said.get('general.architecture')
    if kind != 'llama':
        raise ConfigError(f'general.architecture: expected llama, got {kind!r}')
    for name in ('expert_count', 'rope.scaling.type'):
        if said.get(f'llama.{name}', 'none') not in ('none', 0):
            raise ConfigError(f'llama.{name}: {said[f"llama.{name}"]!r} is not read from GGUF')
    found = {hub: said.get(f'llama.{name}') for hub, name in FIELDS.items()}
    if 'rope_freqs.weight' in tensors:
        found['rope_parameters'] = _scaling(
            tensors['rope_freqs.weight'], found['rope_theta'] or 10_000.0
        )
    return {
        'model_type': 'llama',
        'hidden_act': 'silu',
        'tie_word_embeddings': 'output.weight' not in tensors,
        'vocab_size': tensors['token_embd.weight'].shape[0],
        **{name: value for name, value in found.items() if value is not None},
    }


def _scaling(divisors: Tensor, base: float) -> dict[str, Any]:
    """Llama 3's scaling from what each frequency is divided by. Raises: ConfigError."""
    values = divisors.read((slice(0, divisors.shape[0]),))
    factor = round(float(values.max()), 3)
    scaling = Scaling('llama3', factor, *LLAMA3.values())
    plain, scaled = (Frequencies(base, kind).of(2 * values.size) for kind in (None, scaling))
    if not np.allclose(plain / scaled, values, rtol=1e-3):
        raise ConfigError('rope_freqs.weight: expected the scaling of Llama 3, got another')
    return {'rope_type': 'llama3', 'rope_theta': base, 'factor': factor, **LLAMA3}


def tokenizer(found: Mapping[str, Any]) -> Library:
    """Byte-level BPE from the metadata. Raises: ConfigError for another kind."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
    )

    model, pre = found.get('tokenizer.ggml.model'), found.get('tokenizer.ggml.pre', 'gpt-2')
    if model != 'gpt2' or pre not in SPLITS:
        raise ConfigError(
            f'tokenizer.ggml: expected model gpt2 with pre one of {", ".join(SPLITS)}, got '
            f'{model!r} with {pre!r}; take the model from its hub folder'
        )
    tokens = found['tokenizer.ggml.tokens']
    merges = [tuple(merge.split(' ')) for merge in found['tokenizer.ggml.merges']]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == 'llama-bpe'))
    splits, then_gpt2 = SPLITS[pre]
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=then_gpt2)
    cuts = [pre_tokenizers.Split(Regex(split), 'isolated') for split in splits]
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
    names = {role: tokens[id] for role, id in ids.items() if id is not None}
    if 'bos' in names and found.get('tokenizer.ggml.add_bos_token', pre == 'llama-bpe'):
        made.post_processor = processors.TemplateProcessing(
            single=[names['bos'], '$0'],
            pair=[names['bos'], '$A', names['bos'], '$B'],
            special_tokens=[(names['bos'], ids['bos'])],
        )
    return Library(made, names)
