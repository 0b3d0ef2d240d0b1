"""A small CNN on scikit-learn's 8x8 digits: the first thing to run.

Command:   bigjax train --config=configs/digits_cnn.py --workdir=runs/digits_cnn
Hardware:  two CPU cores
Time:      15 seconds
Score:     test accuracy .996 +- .003 (seeds 0, 1, 2)
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = {'name': 'cnn'}
    config.task = {'name': 'classification'}
    config.data = {'name': 'digits'}
    config.optimizer = {
        'name': 'adamw',
        'learning_rate': 2e-3,
        'weight_decay': 1e-2,
        'schedule': {'name': 'cosine', 'warmup': '5%'},
    }
    config.train = {'epochs': 30, 'batch_size': 64, 'log_every': 20}
    return config
