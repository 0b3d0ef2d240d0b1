"""GPT-2 from scratch (Radford et al. 2019, table 2): `:124m`, `:350m`, `:774m`, `:1558m`; `:tiny`.

Data:      text files; the tokenizer is a folder with GPT-2's encoder.json and vocab.bpe
Command:   bigjax train --config=configs/gpt2.py:124m --workdir=runs/gpt2 \\
             --config.data.path='corpus/*.jsonl' --config.data.tokenizer=gpt2
Hardware:  GPUs or TPUs (`:tiny`: two CPU cores)
Time:      `:tiny` takes minutes; the others were not run for want of a GPU
Score:     none measured; validation in bits per byte
"""

import ml_collections

SIZES = {  # layers, width, heads
    'tiny': (2, 128, 2),
    '124m': (12, 768, 12),
    '350m': (24, 1024, 16),
    '774m': (36, 1280, 20),
    '1558m': (48, 1600, 25),
}


def get_config(size: str = '124m') -> ml_collections.ConfigDict:
    if size not in SIZES:
        raise ValueError(f'expected one of {", ".join(SIZES)}')
    layers, width, heads = SIZES[size]
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = {
        'name': 'transformer',
        'layers': layers,
        'width': width,
        'heads': heads,
        'activation': 'gelu_tanh',
        'vocab_size': 50304,  # 50,257 tokens, and spare rows up to a multiple of 128
    }
    config.task = {'name': 'language_model'}
    config.data = {
        'name': 'text',
        'path': 'corpus',
        'tokenizer': 'gpt2',
        'sequence_length': 64 if size == 'tiny' else 1024,
    }
    config.optimizer = {
        'name': 'adamw',
        'learning_rate': 6e-4 if size in ('tiny', '124m') else 3e-4,
        'b2': 0.95,
        'weight_decay': 0.1,
        'clip': 1.0,
        'schedule': {'name': 'cosine', 'warmup': '1%', 'end': 0.1},
    }
    tiny = size == 'tiny'
    config.train = {'steps': 200 if tiny else 20_000, 'batch_size': 8 if tiny else 480}
    config.eval = {'every': '5%'}
    config.checkpoint = {'every': '5%'}
    if not tiny:
        config.precision = {'compute': 'bfloat16'}
    return config
