"""Llama-style decoders (Touvron et al. 2023): `:7b` (the paper's), `:1.3b`, `:350m`; `:tiny`.

Data:      made-up tokens, which do for planning and timing; set config.data for real ones
Command:   bigjax plan --config=configs/llama.py:7b --topology=v5e:16x16
Hardware:  TPU pods or GPU nodes (`:tiny`: a CPU)
Time:      `:tiny` takes two minutes; the others were planned (docs/plan.md), not run
Score:     none measured; made-up tokens can reach ln 2 nats, validation of text is in bits per byte
"""

import ml_collections

SIZES = {  # layers, width, heads, hidden width, tokens
    'tiny': (2, 128, 4, 384, 128),
    '350m': (24, 1024, 16, 2816, 2048),
    '1.3b': (24, 2048, 16, 5504, 2048),
    '7b': (32, 4096, 32, 11_008, 4096),
}


def get_config(size: str = '1.3b') -> ml_collections.ConfigDict:
    if size not in SIZES:
        raise ValueError(f'expected one of {", ".join(SIZES)}')
    layers, width, heads, hidden, length = SIZES[size]
    tiny = size == 'tiny'
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = {
        'name': 'transformer',
        'layers': layers,
        'width': width,
        'heads': heads,
        'mlp': hidden,
        'activation': 'swiglu',
        'norm': 'rms',
        'positions': 'rope',
        'bias': False,
        'tied': False,
        'scan': True,
        'remat': 'full',
    }
    config.task = {'name': 'language_model'}
    config.data = {
        'name': 'synthetic',
        'kind': 'tokens',
        'examples': 2_000 if tiny else 100_000,
        'sequence_length': length,
        'vocab_size': 256 if tiny else 32_000,
    }
    config.optimizer = {
        'name': 'adamw',
        'learning_rate': 3e-4,
        'b2': 0.95,
        'weight_decay': 0.1,
        'clip': 1.0,
        'schedule': {'name': 'cosine', 'warmup': '1%', 'end': 0.1},
    }
    config.train = {'steps': 100 if tiny else 50_000, 'batch_size': 16 if tiny else 256}
    config.eval = {'every': '5%'}
    config.checkpoint = {'every': '5%'}
    config.mesh = {'preset': 'fsdp'}
    if not tiny:
        config.precision = {'compute': 'bfloat16'}
    return config
