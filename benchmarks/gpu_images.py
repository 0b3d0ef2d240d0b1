"""ResNet-50 and ViT-S/16 on a GPU: images of 224 x 224 a second, ours against PyTorch's in turn.

    pip install 'bigjax[cuda]' torch
    python -m benchmarks.gpu_images --out=images.jsonl

Whole training steps on random uint8 images, standardised on the card: bfloat16 compute over float32
state, SGD with momentum for ResNet-50 and AdamW for ViT-S/16. PyTorch's is an equal model:
torch.compile, channels last, fused optimizers, autocast to bfloat16.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks import gpu
from benchmarks.cases import NEVER
from benchmarks.timing import print_table
from bigjax import config as configs
from bigjax import config_file
from bigjax.config import Config

SGD = {'lr': 0.1, 'weight_decay': 1e-4}
ADAMW = {'lr': 1e-3, 'weight_decay': 0.05}

CASES: dict[str, dict[str, Any]] = {
    'resnet50': {
        'ours': {'name': 'resnet', 'depth': 50},
        'theirs': ('ResNet50', {}),
        'optimizer': ('momentum', {'name': 'SGD', 'momentum': 0.9, **SGD}),
    },
    'vit_s16': {
        'ours': {'name': 'vit'},
        'theirs': ('ViT', {'side': 224}),
        'optimizer': ('adamw', {'name': 'AdamW', **ADAMW}),
    },
}
SMALL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    'resnet50': ({'width': 8}, {'width': 8}),
    'vit_s16': (
        {'width': 32, 'heads': 2, 'layers': 2},
        {'width': 32, 'heads': 2, 'layers': 2, 'side': 32},
    ),
}
"""What a smoke run changes in ours and in theirs."""


def config_of(case: str, batch: int, smoke: bool, changes: Mapping[str, str]) -> Config:
    """That model on random images, never evaluated or saved. Raises: ConfigError."""
    name, theirs = CASES[case]['optimizer']
    images = {'image_size': 32 if smoke else 224, 'channels': 3, 'classes': 10 if smoke else 1000}
    config = configs.resolve(
        {
            'model': CASES[case]['ours'] | (SMALL[case][0] if smoke else {}),
            'task': 'classification',
            'data': {
                'name': 'synthetic',
                'kind': 'images',
                'examples': batch,
                'splits': {'train': 'train'},
                **images,
            },
            'optimizer': {
                'name': name,
                'learning_rate': theirs['lr'],
                'weight_decay': theirs['weight_decay'],
            },
            'train': {'steps': 1000, 'batch_size': batch},
            'precision': {'compute': 'float32' if smoke else 'bfloat16'},
            'eval': {'every': NEVER},
            'checkpoint': {'every': NEVER},
        }
    )
    return config_file.override(config, list(changes.items()))


def torch_spec(case: str, config: Config, smoke: bool) -> dict[str, Any]:
    """The equal of our config for `torch_worker`."""
    model, arguments = CASES[case]['theirs']
    data = config.data.options
    return {
        'model': model,
        'arguments': {'classes': data['classes'], **arguments, **(SMALL[case][1] if smoke else {})},
        'shape': [3, data['image_size'], data['image_size']],
        'integers': 256,
        'classes': data['classes'],
        'optimizer': CASES[case]['optimizer'][1],
    }


def rates(config: Config, facts: Mapping[str, Any], seconds: float) -> dict[str, float | None]:
    """Images a second."""
    return {'images_per_second': config.train.batch_size / seconds}


COLUMNS: gpu.Columns = {
    **gpu.BATCH,
    'images a second': ('images_per_second', 1, ',.0f'),
    **gpu.PEAK,
}


def main(argv: list[str] | None = None) -> None:
    """Prints a line of JSON for each measurement, and a table of them."""
    parser = gpu.parser(__doc__)
    parser.add_argument('--models', default=','.join(CASES), help=f'some of {", ".join(CASES)}')
    arguments = gpu.parse(parser, argv)
    models = arguments.models.split(',')
    if unknown := set(models) - set(CASES):
        parser.error(f'--models: expected some of {", ".join(CASES)}, got {", ".join(unknown)}')
    rows = []
    for case in models:
        batch = 8 if arguments.smoke else arguments.batch or 256
        config = config_of(case, batch, arguments.smoke, arguments.set)
        spec = torch_spec(case, config, arguments.smoke)
        rows += gpu.against_pytorch(case, config, spec, arguments, rates, COLUMNS)
    print_table(['model', 'side', 'ms a step', *COLUMNS, 'bigjax / pytorch'], rows)


if __name__ == '__main__':
    main()
