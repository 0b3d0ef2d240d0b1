"""Two rows of Fashion-MNIST's own tables: an MLP (default), and three convolutions with `:conv`.

Data:      pixels and labels as experiment.py writes them, named by --config.data.path
Command:   bigjax reproduce fashion_mnist_benchmark
Hardware:  two CPU cores
"""

import ml_collections

MODELS = {
    'mlp': {'name': 'mlp', 'widths': (100,)},
    'conv': {'name': 'cnn', 'channels': (32, 64, 64), 'pools': 3, 'dense': (128,), 'dropout': 0.3},
}
EPOCHS = {'mlp': 100, 'conv': 5}
SCHEDULES = {'mlp': {'name': 'constant'}, 'conv': {'name': 'cosine', 'warmup': '5%'}}


def get_config(model: str = 'mlp') -> ml_collections.ConfigDict:
    if model not in MODELS:
        raise ValueError(f'expected one of {", ".join(MODELS)}')
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = MODELS[model]
    config.task = {'name': 'classification'}
    config.data = {
        'name': 'npz',
        'path': 'fashion_mnist.npz',
        'inputs': 'x_{split}',
        'targets': 'y_{split}',
        'splits': {'train': 'train', 'test': 'test'},
    }
    config.optimizer = {
        'name': 'adam',
        'learning_rate': 1e-3,
        'schedule': SCHEDULES[model],
    }
    config.train = {'epochs': EPOCHS[model], 'batch_size': 200}
    config.eval = {'metrics': ('accuracy',)}
    config.checkpoint = {'every': '25%'}
    return config
