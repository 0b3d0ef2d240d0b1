"""Two blocks on characters: the setting in which rates are carried from width to width.

Data:      nanoGPT's input.txt (Tiny Shakespeare), named by --config.data.path
Command:   bigjax train --config=experiments/mup_transfer/config.py --workdir=runs/one
Hardware:  one CPU core
Time:      20 seconds at width 64
Score:     see results.csv
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The base model, under muP."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = {
        'name': 'transformer',
        'layers': 2,
        'width': 64,
        'heads': 1,
        'bias': False,
        'tied': False,
    }
    config.parametrization = {'name': 'mup', 'base': {'width': 64, 'heads': 1}}
    config.task = {'name': 'language_model'}
    config.data = {
        'name': 'text',
        'path': 'input.txt',
        'splits': {'train': 'train[:90%]', 'val': 'train[90%:95%]'},
        'tokenizer': 'characters',
        'sequence_length': 256,
    }
    config.optimizer = {'name': 'adamw', 'learning_rate': 2**-9}
    config.train = {'steps': 122, 'batch_size': 8, 'log_every': 10}
    config.eval = {'every': '100%', 'batch_size': 32}
    config.checkpoint = {'every': '100%', 'keep': 1}
    return config
