"""The families of models on the Hugging Face hub, as configs and as names of tensors.

A family is one table from our parameters to the hub's tensors, read in both directions. `{i}` is
the layer. `name#k` is the k-th third of a tensor's columns: GPT-2 keeps query, key and value side
by side.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bigjax.errors import ConfigError, nearest
from bigjax.models.transformer import Config

Options = dict[str, Any]

ACTIVATIONS = {
    'gelu': 'gelu',
    'gelu_new': 'gelu_tanh',
    'gelu_pytorch_tanh': 'gelu_tanh',
    'relu': 'relu',
    'silu': 'silu',
}


@dataclass(frozen=True)
class Family:
    """
    read_config: a hub config -> the options of our model, its head included.
    write_config: our config and the number of tokens -> what describes it on the hub.
    tensors: our leaf -> the hub's name. prefix: what a hub name may begin with, or not.
    columns: kernels lie on the hub as [in, out] (GPT-2's Conv1D); elsewhere as [out, in].
    ignored: ends of names that hold no parameters.
    """

    read_config: Callable[[Mapping[str, Any]], Options]
    write_config: Callable[[Config, int, int], dict[str, Any]]
    tensors: Mapping[str, str]
    prefix: str = ''
    columns: bool = False
    ignored: tuple[str, ...] = ('position_ids', 'rotary_emb.inv_freq')


def _require(hub: Mapping[str, Any], **expected: Any) -> None:
    """Raises: ConfigError where a field that changes the function has another value."""
    for name, value in expected.items():
        if hub.get(name, value) != value:
            raise ConfigError(
                f'config.json, {name}: expected {value!r}, got {hub[name]!r}, which is not '
                'supported; choose another model'
            )


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ConfigError(f'config.json: no activation {name!r}; {nearest(name, ACTIVATIONS)}')
    return ACTIVATIONS[name]


def _hub_activation(config: Config) -> str:
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if config.activation not in names:
        raise ConfigError(f'config.model.activation: the hub has no {config.activation!r} there')
    return names[config.activation]


def _gpt2_options(hub: Mapping[str, Any]) -> Options:
    _require(
        hub,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    return {
        'layers': hub['n_layer'],
        'width': hub['n_embd'],
        'heads': hub['n_head'],
        'mlp': hub.get('n_inner') or 4 * hub['n_embd'],
        'activation': _activation(hub.get('activation_function', 'gelu_new')),
        'norm_epsilon': hub.get('layer_norm_epsilon', 1e-5),
        'max_length': hub['n_positions'],
        'tied': hub.get('tie_word_embeddings', True),
    }


def _gpt2_config(config: Config, vocabulary: int, max_length: int) -> dict[str, Any]:
    return {
        'model_type': 'gpt2',
        'architectures': ['GPT2LMHeadModel'],
        'n_layer': config.layers,
        'n_embd': config.width,
        'n_head': config.heads,
        'n_inner': config.hidden,
        'n_positions': max_length,
        'activation_function': _hub_activation(config),
        'layer_norm_epsilon': config.norm_epsilon,
        'vocab_size': vocabulary,
        'tie_word_embeddings': config.tied,
    }


GPT2 = Family(
    _gpt2_options,
    _gpt2_config,
    {
        'embed/embedding': 'wte.weight',
        'positions/embedding': 'wpe.weight',
        'block_{i}/attention_norm/scale': 'h.{i}.ln_1.weight',
        'block_{i}/attention_norm/bias': 'h.{i}.ln_1.bias',
        'block_{i}/attention/query/kernel': 'h.{i}.attn.c_attn.weight#0',
        'block_{i}/attention/query/bias': 'h.{i}.attn.c_attn.bias#0',
        'block_{i}/attention/key/kernel': 'h.{i}.attn.c_attn.weight#1',
        'block_{i}/attention/key/bias': 'h.{i}.attn.c_attn.bias#1',
        'block_{i}/attention/value/kernel': 'h.{i}.attn.c_attn.weight#2',
        'block_{i}/attention/value/bias': 'h.{i}.attn.c_attn.bias#2',
        'block_{i}/attention/out/kernel': 'h.{i}.attn.c_proj.weight',
        'block_{i}/attention/out/bias': 'h.{i}.attn.c_proj.bias',
        'block_{i}/mlp_norm/scale': 'h.{i}.ln_2.weight',
        'block_{i}/mlp_norm/bias': 'h.{i}.ln_2.bias',
        'block_{i}/mlp/dense/kernel': 'h.{i}.mlp.c_fc.weight',
        'block_{i}/mlp/dense/bias': 'h.{i}.mlp.c_fc.bias',
        'block_{i}/mlp_out/kernel': 'h.{i}.mlp.c_proj.weight',
        'block_{i}/mlp_out/bias': 'h.{i}.mlp.c_proj.bias',
        'final_norm/scale': 'ln_f.weight',
        'final_norm/bias': 'ln_f.bias',
        'read_out/kernel': 'lm_head.weight',
    },
    prefix='transformer.',
    columns=True,
    ignored=('.attn.bias', '.attn.masked_bias'),
)


def _llama_options(hub: Mapping[str, Any]) -> Options:
    _require(hub, attention_bias=False, mlp_bias=False, hidden_act='silu', pretraining_tp=1)
    rope = hub.get('rope_parameters') or {
        'rope_theta': hub.get('rope_theta', 10_000.0),
        **(hub.get('rope_scaling') or {}),
    }
    return {
        'layers': hub['num_hidden_layers'],
        'width': hub['hidden_size'],
        'heads': hub['num_attention_heads'],
        'kv_heads': hub.get('num_key_value_heads') or hub['num_attention_heads'],
        'head_dim': hub.get('head_dim'),
        'mlp': hub['intermediate_size'],
        'activation': 'swiglu',
        'norm': 'rms',
        'norm_epsilon': hub.get('rms_norm_eps', 1e-6),
        'bias': False,
        'positions': 'rope',
        'rope_base': float(rope['rope_theta']),
        'rope_scaling': _scaling(rope),
        'tied': hub.get('tie_word_embeddings', False),
    }


def _scaling(rope: Mapping[str, Any]) -> Options | None:
    kind = rope.get('rope_type', rope.get('type', 'default'))
    if kind == 'default':
        return None
    if kind == 'linear':
        return {'kind': 'linear', 'factor': float(rope['factor'])}
    if kind != 'llama3':
        raise ConfigError(
            f'config.json: rope type {kind!r} is not supported; expected default, linear or llama3'
        )
    return {
        'kind': 'llama3',
        'factor': float(rope['factor']),
        'low': float(rope['low_freq_factor']),
        'high': float(rope['high_freq_factor']),
        'original_length': rope['original_max_position_embeddings'],
    }


def _llama_config(config: Config, vocabulary: int, max_length: int) -> dict[str, Any]:
    rope: dict[str, Any] = {'rope_type': 'default', 'rope_theta': config.rope_base}
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        rope |= {'rope_type': scaling.kind, 'factor': scaling.factor}
        if scaling.kind == 'llama3':
            rope |= {
                'low_freq_factor': scaling.low,
                'high_freq_factor': scaling.high,
                'original_max_position_embeddings': scaling.original_length,
            }
    return {
        'model_type': 'llama',
        'architectures': ['LlamaForCausalLM'],
        'num_hidden_layers': config.layers,
        'hidden_size': config.width,
        'num_attention_heads': config.heads,
        'num_key_value_heads': config.key_heads,
        'head_dim': config.head_size,
        'intermediate_size': config.hidden,
        'hidden_act': 'silu',
        'rms_norm_eps': config.norm_epsilon,
        'max_position_embeddings': max_length,
        'rope_parameters': rope,
        'vocab_size': vocabulary,
        'tie_word_embeddings': config.tied,
    }


LLAMA = Family(
    _llama_options,
    _llama_config,
    {
        'embed/embedding': 'model.embed_tokens.weight',
        'block_{i}/attention_norm/scale': 'model.layers.{i}.input_layernorm.weight',
        'block_{i}/attention/query/kernel': 'model.layers.{i}.self_attn.q_proj.weight',
        'block_{i}/attention/key/kernel': 'model.layers.{i}.self_attn.k_proj.weight',
        'block_{i}/attention/value/kernel': 'model.layers.{i}.self_attn.v_proj.weight',
        'block_{i}/attention/out/kernel': 'model.layers.{i}.self_attn.o_proj.weight',
        'block_{i}/mlp_norm/scale': 'model.layers.{i}.post_attention_layernorm.weight',
        'block_{i}/mlp/gate/kernel': 'model.layers.{i}.mlp.gate_proj.weight',
        'block_{i}/mlp/dense/kernel': 'model.layers.{i}.mlp.up_proj.weight',
        'block_{i}/mlp_out/kernel': 'model.layers.{i}.mlp.down_proj.weight',
        'final_norm/scale': 'model.norm.weight',
        'read_out/kernel': 'lm_head.weight',
    },
)


def _bert_options(hub: Mapping[str, Any]) -> Options:
    _require(hub, position_embedding_type='absolute', is_decoder=False, add_cross_attention=False)
    return {
        'layers': hub['num_hidden_layers'],
        'width': hub['hidden_size'],
        'heads': hub['num_attention_heads'],
        'mlp': hub['intermediate_size'],
        'activation': _activation(hub.get('hidden_act', 'gelu')),
        'norm_position': 'post',
        'norm_epsilon': hub.get('layer_norm_eps', 1e-12),
        'attention': 'bidirectional',
        'embedding_norm': True,
        'token_types': hub.get('type_vocab_size', 2),
        'max_length': hub['max_position_embeddings'],
        'vocab_size': hub['vocab_size'],
        'head': 'none',
    }


def _bert_config(config: Config, vocabulary: int, max_length: int) -> dict[str, Any]:
    heads = {'none': 'BertModel', 'tokens': 'BertForMaskedLM'}
    return {
        'model_type': 'bert',
        'architectures': [heads.get(config.head, 'BertForSequenceClassification')],
        'num_hidden_layers': config.layers,
        'hidden_size': config.width,
        'num_attention_heads': config.heads,
        'intermediate_size': config.hidden,
        'hidden_act': _hub_activation(config),
        'layer_norm_eps': config.norm_epsilon,
        'max_position_embeddings': max_length,
        'type_vocab_size': config.token_types,
        'vocab_size': config.vocab_size or vocabulary,
    }


BERT = Family(
    _bert_options,
    _bert_config,
    {
        'embed/embedding': 'bert.embeddings.word_embeddings.weight',
        'positions/embedding': 'bert.embeddings.position_embeddings.weight',
        'token_types/embedding': 'bert.embeddings.token_type_embeddings.weight',
        'embedding_norm/scale': 'bert.embeddings.LayerNorm.weight',
        'embedding_norm/bias': 'bert.embeddings.LayerNorm.bias',
        **{
            f'block_{{i}}/{ours}/{leaf}': f'bert.encoder.layer.{{i}}.{theirs}.{name}'
            for ours, theirs, leaves in (
                ('attention/query', 'attention.self.query', ('kernel', 'bias')),
                ('attention/key', 'attention.self.key', ('kernel', 'bias')),
                ('attention/value', 'attention.self.value', ('kernel', 'bias')),
                ('attention/out', 'attention.output.dense', ('kernel', 'bias')),
                ('attention_norm', 'attention.output.LayerNorm', ('scale', 'bias')),
                ('mlp/dense', 'intermediate.dense', ('kernel', 'bias')),
                ('mlp_out', 'output.dense', ('kernel', 'bias')),
                ('mlp_norm', 'output.LayerNorm', ('scale', 'bias')),
            )
            for leaf, name in zip(leaves, ('weight', 'bias'), strict=True)
        },
        'pooler/kernel': 'bert.pooler.dense.weight',
        'pooler/bias': 'bert.pooler.dense.bias',
        'head/kernel': 'cls.predictions.transform.dense.weight',
        'head/bias': 'cls.predictions.transform.dense.bias',
        'head_norm/scale': 'cls.predictions.transform.LayerNorm.weight',
        'head_norm/bias': 'cls.predictions.transform.LayerNorm.bias',
        'head_bias': 'cls.predictions.bias',
        'read_out/kernel': 'classifier.weight',
        'read_out/bias': 'classifier.bias',
    },
    prefix='bert.',
    ignored=('position_ids', 'seq_relationship.weight', 'seq_relationship.bias'),
)

FAMILIES = {'gpt2': GPT2, 'llama': LLAMA, 'bert': BERT}


def of_hub(hub: Mapping[str, Any], where: str) -> Family:
    """The family that a config.json names. Raises: ConfigError."""
    kind = hub.get('model_type')
    if kind not in FAMILIES:
        code = '; code of a model (auto_map) is never run' if 'auto_map' in hub else ''
        raise ConfigError(
            f'{where}: model_type {kind!r} is not supported; expected one of '
            f'{", ".join(FAMILIES)}{code}'
        )
    return FAMILIES[kind]
