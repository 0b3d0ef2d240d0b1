"""A mixture of experts on bytes: configs/stdlib_lm.py with 8 MLPs a layer, of which a token sees 2.

As many weights of MLPs meet a token as there, 2 of half the width, out of four times as many.
`:dropless` leaves no token out, at the products of all 8 unless on a TPU.

Command:   bigjax train --config=configs/moe.py --workdir=runs/moe
Hardware:  two CPU cores
Time:      16 minutes, of which 4 evaluate, beside seven other jobs
Score:     test 2.422 bits per byte after 500 steps (seed 0)
"""

import ml_collections


def get_config(kind: str = 'capacity') -> ml_collections.ConfigDict:
    if kind not in ('capacity', 'dropless'):
        raise ValueError('expected capacity or dropless')
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = {
        'name': 'transformer',
        'layers': 4,
        'width': 128,
        'heads': 4,
        'mlp': 256,
        'experts': 8,
        'experts_per_token': 2,
        'capacity_factor': 1.25 if kind == 'capacity' else None,
        'norm': 'rms',
        'activation': 'gelu',
        'positions': 'rope',
    }
    config.task = {'name': 'language_model'}
    config.data = {'name': 'text', 'path': 'stdlib', 'sequence_length': 128}
    config.optimizer = {
        'name': 'adamw',
        'learning_rate': 2e-3,
        'weight_decay': 0.1,
        'b2': 0.99,
        'clip': 1.0,
        'schedule': {'name': 'cosine', 'warmup': '5%'},
    }
    config.train = {'steps': 500, 'batch_size': 16, 'log_every': 50}
    config.eval = {'every': 250, 'batch_size': 64}
    config.checkpoint = {'every': 250}
    return config
