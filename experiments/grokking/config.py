"""Addition modulo 113 by a Transformer of one block, on all of its training set at each step.

Data:      made by experiment.py, named by --config.data.path
Command:   bigjax reproduce grokking
Hardware:  two CPU cores
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = {
        'name': 'transformer',
        'layers': 1,
        'width': 128,
        'heads': 4,
        'activation': 'relu',
        'vocab_size': 114,
        'head': 'last',
    }
    config.task = {'name': 'classification'}
    config.data = {
        'name': 'npz',
        'path': 'addition.npz',
        'inputs': 'x_{split}',
        'targets': 'y_{split}',
        'splits': {'train': 'train', 'val': 'val'},
    }
    config.optimizer = {
        'name': 'adamw',
        'learning_rate': 1e-3,
        'b2': 0.98,
        'weight_decay': 1.0,
        'schedule': {'name': 'constant', 'warmup': 10},
    }
    config.train = {'steps': 3_000, 'batch_size': 3830, 'log_every': 10}
    config.eval = {'every': 100, 'metrics': ('accuracy',)}
    config.checkpoint = {'every': 1000}
    return config
