"""Writes the tiny hub folders of this directory, and what transformers computes with them.

Needs torch and transformers; run it again only to add a case:

    python tests/golden/make_hub_models.py
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HERE = Path(__file__).parent / 'hub'
SMALL = {'vocab_size': 96, 'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4}
LLAMA = dict(SMALL, intermediate_size=40, num_key_value_heads=2, max_position_embeddings=64)
SHALLOW = dict(LLAMA, num_hidden_layers=1)
SCALED = {
    'rope_type': 'llama3',
    'rope_theta': 500.0,
    'factor': 4.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 16,
}
LINEAR = {'rope_type': 'linear', 'rope_theta': 100.0, 'factor': 2.0}
BERT = dict(SMALL, intermediate_size=40, max_position_embeddings=24)
GPT2 = {'vocab_size': 96, 'n_embd': 32, 'n_layer': 2, 'n_head': 4, 'n_positions': 24, 'n_inner': 40}

t = transformers
CASES = {
    'gpt2': (t.GPT2LMHeadModel, t.GPT2Config(**GPT2)),
    'bert': (t.BertForMaskedLM, t.BertConfig(**BERT)),
    'llama': (t.LlamaForCausalLM, t.LlamaConfig(**LLAMA, rope_parameters=SCALED)),
    'llama_tied': (
        t.LlamaForCausalLM,
        t.LlamaConfig(**LLAMA, head_dim=16, tie_word_embeddings=True, rope_parameters=LINEAR),
    ),
    'mistral': (t.MistralForCausalLM, t.MistralConfig(**SHALLOW, sliding_window=4)),
    'qwen3': (t.Qwen3ForCausalLM, t.Qwen3Config(**SHALLOW, head_dim=8)),
}


def tokenizer() -> Tokenizer:
    """The printable characters of ASCII and no more."""
    vocabulary = {chr(32 + i) if i else 'Ġ': i for i in range(95)} | {'<|endoftext|>': 95}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(['<|endoftext|>'])
    return made


def main() -> None:
    """Every case anew."""
    shutil.rmtree(HERE, ignore_errors=True)
    random = np.random.default_rng(0)
    tokens = random.integers(0, 96, (2, 12))
    mask = np.arange(12)[None] < np.array([[12], [7]])
    for number, (name, (kind, config)) in enumerate(CASES.items()):
        torch.manual_seed(number)
        model = kind(config).eval()
        dtype = torch.float16 if name == 'gpt2' else torch.bfloat16
        with torch.no_grad():
            for parameter in model.parameters():  # norms and biases too, so that none is left out
                parameter.add_(0.1 * torch.randn_like(parameter))
                parameter.copy_(parameter.to(dtype))  # of buffers files hold nothing: not rounded
        inputs = {'input_ids': torch.tensor(tokens)}
        if name == 'bert':
            inputs['attention_mask'] = torch.tensor(mask).long()
            inputs['token_type_ids'] = torch.tensor(tokens % 2)
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True)
        kept = {'logits': outputs.logits}
        if name == 'bert':
            kept['hidden'] = outputs.hidden_states[-1]
        shard_size = '12KB' if name == 'llama' else '5GB'
        model.to(dtype).save_pretrained(HERE / name, max_shard_size=shard_size)
        (HERE / name / 'generation_config.json').unlink(missing_ok=True)
        tokenizer().save(str(HERE / name / 'tokenizer.json'))
        arrays = {key: value.numpy() for key, value in kept.items()}
        np.savez_compressed(HERE / name / 'golden.npz', tokens=tokens, mask=mask, **arrays)
    sizes = [file.stat().st_size for file in HERE.rglob('*') if file.is_file()]
    print(json.dumps({'files': len(sizes), 'bytes': sum(sizes)}))


if __name__ == '__main__':
    main()
