"""nanoGPT's character-level Shakespeare: its CPU settings, and with `:gpu` its GPU settings.

Data:      nanoGPT's input.txt (Tiny Shakespeare), named by --config.data.path; or TFDS's, with its
           own splits: --config.data.path=tfds:tiny_shakespeare --config.data.splits={}
Command:   bigjax train --config=configs/shakespeare.py --workdir=runs/shakespeare
Hardware:  two CPU cores (`:gpu`: one GPU)
Time:      2 minutes
Score:     val loss 1.899, 2.740 bits per byte (three seeds within .001)
"""

import ml_collections

SIZES = {
    'cpu': {'layers': 4, 'width': 128, 'heads': 4, 'T': 64, 'batch': 12, 'steps': 2000},
    'gpu': {'layers': 6, 'width': 384, 'heads': 6, 'T': 256, 'batch': 64, 'steps': 5000},
}


def get_config(size: str = 'cpu') -> ml_collections.ConfigDict:
    if size not in SIZES:
        raise ValueError(f'expected one of {", ".join(SIZES)}')
    chosen = SIZES[size]
    dropout = 0.2 if size == 'gpu' else 0.0
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = {
        'name': 'transformer',
        **{key: chosen[key] for key in ('layers', 'width', 'heads')},
        'bias': False,
        'dropout': dropout,
        'attention_dropout': dropout,
    }
    config.task = {'name': 'language_model'}
    config.data = {
        'name': 'text',
        'path': 'input.txt',
        'splits': {'train': 'train[:90%]', 'val': 'train[90%:]'},
        'tokenizer': 'characters',
        'sequence_length': chosen['T'],
    }
    config.optimizer = {
        'name': 'adamw',
        'learning_rate': 1e-3,
        'b2': 0.99,
        'weight_decay': 0.1,
        'clip': 1.0,
        'schedule': {'name': 'cosine', 'warmup': 100, 'end': 0.1},
    }
    config.train = {'steps': chosen['steps'], 'batch_size': chosen['batch']}
    config.eval = {'every': 250, 'batch_size': 128}
    config.checkpoint = {'every': '20%', 'best': 'val/loss'}
    if size == 'gpu':
        config.precision = {'compute': 'bfloat16'}
    return config
