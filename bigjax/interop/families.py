"""The families of the hub that our Transformer can be, each one table read in both directions.

A family says where every parameter of ours lies in its files, and which field of its config.json
holds which option of ours. What a family always is, is in `ours`; what its config may say beyond,
in only one way that we can follow, is in `only`.

The tables follow the modules of transformers 5 and, for GGUF, the names of llama.cpp.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bigjax import schema
from bigjax.errors import ConfigError, nearest
from bigjax.models.transformer import Config


@dataclass(frozen=True)
class Place:
    """Where the parameters of one of our modules lie in a file.

    module: its name there; {} stands for the number of the layer.
    transposed: its matrices are [out, in], as torch's Linear has them; ours are [in, out].
    part, parts: it is one of several that lie side by side along `out`.
    paired: channels that are rotated together are neighbours, not half a head apart.
    """

    module: str
    transposed: bool = True
    part: int = 0
    parts: int = 1
    paired: bool = False


Places = Mapping[str, Place]
"""By our module: 'embed', and 'block/mlp' for the one of each layer."""


@dataclass(frozen=True)
class Family:
    """prefix: of all but the heads' names, left out where a file holds a model without a head.

    heads: by architecture the options of ours that make it; the first is what is read.
    fields: by option of ours the field of config.json.
    missing: what a field is where config.json leaves it out.
    activations: by name on the hub.
    """

    places: Places
    prefix: str
    heads: Mapping[str, Mapping[str, Any]]
    fields: Mapping[str, str]
    ours: Mapping[str, Any]
    activations: Mapping[str, str]
    missing: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)


def _places(inner: str, modules: Mapping[str, str | Place]) -> Places:
    """`inner` goes before the names of modules of a block."""
    places = {}
    for ours, place in modules.items():
        place = Place(place) if isinstance(place, str) else place
        before = inner if ours.startswith('block/') else ''
        places[ours] = dataclasses.replace(place, module=before + place.module)
    return places


def _conv(module: str, part: int = 0, parts: int = 1) -> Place:
    """GPT-2's Conv1D, whose matrices are [in, out] as ours are."""
    return Place(module, False, part, parts)


FIELDS = {
    'layers': 'num_hidden_layers',
    'width': 'hidden_size',
    'heads': 'num_attention_heads',
    'mlp': 'intermediate_size',
    'activation': 'hidden_act',
    'tied': 'tie_word_embeddings',
    'vocab_size': 'vocab_size',
    'max_length': 'max_position_embeddings',
}
"""Of most families."""

GPT2 = Family(
    places=_places(
        'transformer.h.{}.',
        {
            'embed': 'transformer.wte',
            'positions': 'transformer.wpe',
            'block/attention_norm': 'ln_1',
            'block/attention/query': _conv('attn.c_attn', 0, 3),
            'block/attention/key': _conv('attn.c_attn', 1, 3),
            'block/attention/value': _conv('attn.c_attn', 2, 3),
            'block/attention/out': _conv('attn.c_proj'),
            'block/mlp_norm': 'ln_2',
            'block/mlp/dense': _conv('mlp.c_fc'),
            'block/mlp_out': _conv('mlp.c_proj'),
            'final_norm': 'transformer.ln_f',
            'read_out': 'lm_head',
        },
    ),
    prefix='transformer.',
    heads={'GPT2LMHeadModel': {'head': 'tokens'}, 'GPT2Model': {'head': 'none'}},
    fields={
        **FIELDS,
        'layers': 'n_layer',
        'width': 'n_embd',
        'heads': 'n_head',
        'mlp': 'n_inner',
        'activation': 'activation_function',
        'norm_epsilon': 'layer_norm_epsilon',
        'max_length': 'n_positions',
    },
    ours={'positions': 'learned'},
    activations={
        'gelu_new': 'gelu_tanh',
        'gelu_pytorch_tanh': 'gelu_tanh',
        **{name: name for name in ('gelu', 'relu', 'silu', 'tanh')},
    },
    missing={
        'n_inner': None,
        'activation_function': 'gelu_new',
        'layer_norm_epsilon': 1e-5,
        'tie_word_embeddings': True,
    },
    only={
        'scale_attn_weights': True,
        'scale_attn_by_inverse_layer_idx': False,
        'add_cross_attention': False,
    },
)

BERT = Family(
    places=_places(
        'bert.encoder.layer.{}.',
        {
            'embed': 'bert.embeddings.word_embeddings',
            'positions': 'bert.embeddings.position_embeddings',
            'token_types': 'bert.embeddings.token_type_embeddings',
            'embedding_norm': 'bert.embeddings.LayerNorm',
            'block/attention/query': 'attention.self.query',
            'block/attention/key': 'attention.self.key',
            'block/attention/value': 'attention.self.value',
            'block/attention/out': 'attention.output.dense',
            'block/attention_norm': 'attention.output.LayerNorm',
            'block/mlp/dense': 'intermediate.dense',
            'block/mlp_out': 'output.dense',
            'block/mlp_norm': 'output.LayerNorm',
            'pooler': 'bert.pooler.dense',
            'head': 'cls.predictions.transform.dense',
            'head_norm': 'cls.predictions.transform.LayerNorm',
            '': 'cls.predictions',  # of head_bias
            'read_out': 'classifier',
        },
    ),
    prefix='bert.',
    heads={
        'BertModel': {'head': 'none'},
        'BertForMaskedLM': {'head': 'tokens', 'head_transform': True},
        'BertForSequenceClassification': {'head': 'first', 'pooler': True},
    },
    fields={**FIELDS, 'norm_epsilon': 'layer_norm_eps', 'token_types': 'type_vocab_size'},
    ours={
        'attention': 'bidirectional',
        'positions': 'learned',
        'norm_position': 'post',
        'embedding_norm': True,
    },
    activations=GPT2.activations,
    missing={'layer_norm_eps': 1e-12, 'tie_word_embeddings': True},
    only={
        'position_embedding_type': 'absolute',
        'is_decoder': False,
        'add_cross_attention': False,
    },
)

LLAMA = Family(
    places=_places(
        'model.layers.{}.',
        {
            'embed': 'model.embed_tokens',
            'block/attention_norm': 'input_layernorm',
            'block/attention/query': 'self_attn.q_proj',
            'block/attention/query_norm': 'self_attn.q_norm',
            'block/attention/key': 'self_attn.k_proj',
            'block/attention/key_norm': 'self_attn.k_norm',
            'block/attention/value': 'self_attn.v_proj',
            'block/attention/out': 'self_attn.o_proj',
            'block/mlp_norm': 'post_attention_layernorm',
            'block/mlp/gate': 'mlp.gate_proj',
            'block/mlp/dense': 'mlp.up_proj',
            'block/mlp_out': 'mlp.down_proj',
            'final_norm': 'model.norm',
            'read_out': 'lm_head',
        },
    ),
    prefix='model.',
    heads={'LlamaForCausalLM': {'head': 'tokens'}, 'LlamaModel': {'head': 'none'}},
    fields={
        **FIELDS,
        'kv_heads': 'num_key_value_heads',
        'head_dim': 'head_dim',
        'norm_epsilon': 'rms_norm_eps',
    },
    ours={'positions': 'rope', 'norm': 'rms', 'bias': False},
    activations={'silu': 'swiglu', 'gelu': 'geglu'},
    missing={
        'num_key_value_heads': None,
        'head_dim': None,
        'rms_norm_eps': 1e-6,
        'tie_word_embeddings': False,
    },
    only={'attention_bias': False, 'mlp_bias': False},
)

FAMILIES = {
    'gpt2': GPT2,
    'bert': BERT,
    'llama': LLAMA,
    'mistral': dataclasses.replace(
        LLAMA,
        heads={'MistralForCausalLM': {'head': 'tokens'}, 'MistralModel': {'head': 'none'}},
        fields={**LLAMA.fields, 'window': 'sliding_window'},
        missing={**LLAMA.missing, 'num_key_value_heads': 8, 'sliding_window': 4096},
    ),
    'qwen3': dataclasses.replace(
        LLAMA,
        heads={'Qwen3ForCausalLM': {'head': 'tokens'}, 'Qwen3Model': {'head': 'none'}},
        ours={**LLAMA.ours, 'query_key_norm': True},
        missing={**LLAMA.missing, 'head_dim': 128},
        only={'attention_bias': False, 'use_sliding_window': False},
    ),
}

GGUF_PLACES = _places(
    'blk.{}.',
    {
        'embed': 'token_embd',
        'block/attention_norm': 'attn_norm',
        'block/attention/query': Place('attn_q', paired=True),
        'block/attention/key': Place('attn_k', paired=True),
        'block/attention/value': 'attn_v',
        'block/attention/out': 'attn_output',
        'block/mlp_norm': 'ffn_norm',
        'block/mlp/gate': 'ffn_gate',
        'block/mlp/dense': 'ffn_up',
        'block/mlp_out': 'ffn_down',
        'final_norm': 'output_norm',
        'read_out': 'output',
    },
)
"""Of architecture llama."""

ROPE_SCALING = {
    'factor': 'factor',
    'low': 'low_freq_factor',
    'high': 'high_freq_factor',
    'original_length': 'original_max_position_embeddings',
}
ROPE_KINDS = {'linear': ('factor',), 'llama3': tuple(ROPE_SCALING)}

TRAINING = (
    'dropout', 'attention_dropout', 'stochastic_depth', 'attention_implementation', 'scan', 'remat',
)  # fmt: skip
"""Options that change how a model is trained or computed, not what it is."""


def read_config(hub: Mapping[str, Any], where: str) -> tuple[Family, dict[str, Any]]:
    """The family of a config.json and the options of our model, with its first head.

    Raises: ConfigError naming what is not supported.
    """
    kind = hub.get('model_type')
    if kind not in FAMILIES:
        own = '; code of its own (auto_map) is never run' if 'auto_map' in hub else ''
        raise ConfigError(
            f'{where}: model_type: expected one of {", ".join(FAMILIES)}, got {kind!r}{own}'
        )
    family = FAMILIES[kind]
    for name, value in {**family.only, 'quantization_config': None}.items():
        if hub.get(name, value) != value:
            raise ConfigError(
                f'{where}: {name}: expected {value!r}, got {hub[name]!r}, which is not supported'
            )
    options = dict(family.ours)
    for ours, theirs in family.fields.items():
        if theirs not in hub and theirs not in family.missing:
            raise ConfigError(f'{where}: {theirs}: expected a value, got none')
        options[ours] = hub.get(theirs, family.missing.get(theirs))
    activation = options['activation']
    if activation not in family.activations:
        raise ConfigError(
            f'{where}: {family.fields["activation"]}: no {activation!r}: '
            f'{nearest(str(activation), family.activations)}'
        )
    options['activation'] = family.activations[activation]
    if options['positions'] == 'rope':
        options |= _read_rope(hub, where)
    return family, {**options, **next(iter(family.heads.values()))}


def write_config(config: Config, vocabulary: int, max_length: int) -> tuple[Family, dict[str, Any]]:
    """The family that has models of this config, and its config.json.

    Raises: ConfigError naming the fields by which the nearest family differs.
    """
    config = _explicit(config, vocabulary, max_length)
    refusals = []
    for kind, family in FAMILIES.items():
        words = {ours: theirs for theirs, ours in reversed([*family.activations.items()])}
        hub = {theirs: getattr(config, ours) for ours, theirs in family.fields.items()}
        hub |= {'model_type': kind, **family.only}
        a_word = next(iter(family.activations))  # for an activation that it has no word for
        hub[family.fields['activation']] = words.get(config.activation, a_word)
        if family.ours['positions'] == 'rope':
            hub |= _write_rope(config)
        for architecture, head in family.heads.items():
            different = _differences(config, hub, head)
            if not different:
                return family, {**hub, 'architectures': [architecture]}
            refusals.append((len(different), kind, different))
    _, kind, different = min(refusals)
    said = ', '.join(f'{name}={getattr(config, name)!r}' for name in different)
    raise ConfigError(
        f'config.model: no family of the hub has {said} (the nearest is {kind}); export to '
        'safetensors or stablehlo'
    )


def _explicit(config: Config, vocabulary: int, max_length: int) -> Config:
    """The same model with every option that follows from others spelled out, and TRAINING's not."""
    plain = Config()
    unused = [*TRAINING]
    if config.head != 'tokens':
        unused += ['tied', 'head_transform', 'logit_soft_cap']
    if config.head not in ('mean', 'first', 'last'):
        unused += ['pooler']
    return dataclasses.replace(
        config,
        kv_heads=config.key_heads,
        head_dim=config.head_size,
        mlp=config.hidden,
        vocab_size=vocabulary,
        max_length=max_length,
        **{name: getattr(plain, name) for name in unused},
    )


def _differences(config: Config, hub: Mapping[str, Any], head: Mapping[str, Any]) -> list[str]:
    """The fields in which a model read from `hub` is another than `config`'s."""
    try:
        options = {**read_config(hub, '')[1], **head}
        read = schema.build(Config, options, '')
    except ConfigError:  # rotations of an odd head size
        return ['positions']
    read = _explicit(read, read.vocab_size or 0, read.max_length or 0)
    fields = [field.name for field in dataclasses.fields(Config)]
    return [name for name in fields if getattr(read, name) != getattr(config, name)]


def _read_rope(hub: Mapping[str, Any], where: str) -> dict[str, Any]:
    """transformers 5 has all of it in rope_parameters, older configs the base beside the rest."""
    said = hub.get('rope_parameters') or hub.get('rope_scaling') or {}
    kind = said.get('rope_type', said.get('type', 'default'))
    base = said.get('rope_theta', hub.get('rope_theta', 10_000.0))
    if kind not in ('default', *ROPE_KINDS):
        known = ', '.join(('default', *ROPE_KINDS))
        raise ConfigError(f'{where}: rope type: expected one of {known}, got {kind!r}')
    if kind == 'default':
        return {'rope_base': base, 'rope_scaling': None}
    names = {ours: ROPE_SCALING[ours] for ours in ROPE_KINDS[kind]}
    if lacking := names.values() - said.keys():
        raise ConfigError(f'{where}: rope type {kind}: expected {sorted(lacking)[0]}, got none')
    scaling = {ours: said[theirs] for ours, theirs in names.items()}
    return {'rope_base': base, 'rope_scaling': {'kind': kind, **scaling}}


def _write_rope(config: Config) -> dict[str, Any]:
    said: dict[str, Any] = {'rope_type': 'default', 'rope_theta': config.rope_base}
    if (scaling := config.rope_scaling) is not None:
        said['rope_type'] = scaling.kind
        said |= {ROPE_SCALING[ours]: getattr(scaling, ours) for ours in ROPE_KINDS[scaling.kind]}
    return {'rope_parameters': said, 'rope_theta': config.rope_base, 'rope_scaling': said}
