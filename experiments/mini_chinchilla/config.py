"""A small decoder on characters, cosine to zero over its own run: one point of an IsoFLOP curve.

Data:      Tiny Shakespeare, nanoGPT's input.txt, named by --config.data.path
Command:   bigjax reproduce mini_chinchilla --data=input.txt
Hardware:  two CPU cores
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = {
        'name': 'transformer',
        'layers': 4,
        'width': 64,
        'heads': 4,
        'bias': False,
        'norm': 'rms',
        'positions': 'rope',
        'tied': False,
    }
    config.task = {'name': 'language_model'}
    config.data = {
        'name': 'text',
        'path': 'input.txt',
        'splits': {'train': 'train[:90%]', 'val': 'train[90%:]'},
        'tokenizer': 'characters',
        'sequence_length': 128,
    }
    config.optimizer = {
        'name': 'adamw',
        'learning_rate': 3e-3,
        'b2': 0.95,
        'weight_decay': 0.1,
        'clip': 1.0,
        'schedule': {'name': 'cosine', 'warmup': '5%'},
    }
    config.train = {'steps': 500, 'batch_size': 8}
    config.eval = {'every': '100%', 'batch_size': 64}
    config.checkpoint = {'every': '100%'}
    return config
