"""GPT-2's training step on a GPU: tokens a second and MFU, ours against PyTorch's in turn.

    pip install 'bigjax[cuda]' torch
    python -m benchmarks.gpu_lm --sizes=124m --out=lm.jsonl
    python -m benchmarks.gpu_lm --ablate --sizes=124m --out=ablation.jsonl

Ours is the step of configs/gpt2.py on random tokens: bfloat16 compute over float32 state, AdamW,
clipping, the schedule, the training metrics. PyTorch's is an equal model: torch.compile, scaled dot
product attention, fused AdamW, clipping, autocast to bfloat16. Both lie on the card together, each
in a process of its own; --sides=bigjax gives all of the memory to one.

--ablate measures ours alone: the config, with one change at a time, and the config again.
"""

import argparse
import os
from collections.abc import Mapping
from typing import Any

from benchmarks import gpu
from benchmarks.cases import NEVER
from benchmarks.timing import print_table
from benchmarks.workers import ROOT
from bigjax import chips, config_file
from bigjax.config import Config
from bigjax.errors import ConfigError
from bigjax.models.flops import palm

FORMULA = (
    'MFU = FLOPs / (seconds * peak): FLOPs a token 6 N + 12 L d T (Chowdhery et al. 2022, appendix '
    'B), or causal, 6 N + 6 L d T; N without position tables; bfloat16 peak of the device kind'
)

SIZES: dict[str, tuple[str, int, dict[str, Any]]] = {
    # preset of configs/gpt2.py, batch with both sides in 80 GB, what else
    'tiny': ('tiny', 8, {}),
    '124m': ('124m', 32, {}),
    '350m': ('350m', 16, {}),
    # GPT-3 XL (Brown et al. 2020, table 2.1), with 16 heads of 128
    '1.3b': ('1558m', 4, {'model.layers': 24, 'model.width': 2048, 'model.heads': 16}),
    '1558m': ('1558m', 4, {}),
}


def variants(batch: int, length: int) -> dict[str, tuple[dict[str, Any], dict[str, str]]]:
    """Of the ablation: a name, what changes in the config, and in the environment."""

    def flags(text: str) -> dict[str, str]:
        return {'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {text}'.strip()}

    return {
        'attention: cuDNN': ({'model.attention_implementation': 'cudnn'}, {}),
        'attention: chunked': ({'model.attention_implementation': 'chunked'}, {}),
        'attention: dense': ({'model.attention_implementation': 'dense'}, {}),
        'float32 compute': ({'precision.compute': 'float32'}, {}),
        'half the batch': ({'train.batch_size': max(batch // 2, 1)}, {}),
        'twice the batch': ({'train.batch_size': 2 * batch}, {}),
        'moments in bfloat16': ({'precision.moments': 'bfloat16'}, {}),
        'remat: dots': ({'model.remat': 'dots'}, {}),
        'remat: projections': ({'model.remat': 'projections'}, {}),
        'remat: offload': ({'model.remat': 'offload'}, {}),
        'remat: full': ({'model.remat': 'full'}, {}),
        'layers scanned': ({'model.scan': True}, {}),
        'layers unrolled': ({'model.scan': False}, {}),
        'vocabulary not padded (50,257)': ({'model.vocab_size': 50_257}, {}),
        'logits padded too (50,304)': ({'data.vocab_size': 50_304}, {}),
        'chunked cross-entropy': ({'task.chunk': max(length // 8, 1)}, {}),
        'JAX_OPTIMIZATION_LEVEL=O1': ({}, {'JAX_OPTIMIZATION_LEVEL': 'O1'}),
        'no Triton GEMM': ({}, flags('--xla_gpu_enable_triton_gemm=false')),
        'latency-hiding scheduler': ({}, flags('--xla_gpu_enable_latency_hiding_scheduler=true')),
    }


def config_of(size: str, batch: int | None, changes: Mapping[str, Any]) -> Config:
    """That size on random tokens, never evaluated or saved. Raises: ConfigError."""
    preset, usual, shape = SIZES[size]
    path = f'{ROOT / "configs" / "gpt2.py"}:{preset}'
    length = config_file.load(path).data.options['sequence_length']
    data = {'name': 'synthetic', 'kind': 'tokens', 'examples': 4096, 'sequence_length': length}
    fixed = {
        'data': {**data, 'vocab_size': 50_257},
        'train.batch_size': batch or usual,
        'eval.every': NEVER,
        'checkpoint.every': NEVER,
    }
    values = {**fixed, **shape, **changes}
    return config_file.load(path, [(key, str(value)) for key, value in values.items()])


def torch_spec(config: Config) -> dict[str, Any]:
    """The equal of our config for `torch_worker`."""
    model, data, optimizer = config.model.options, config.data.options, config.optimizer
    same = {key: model[key] for key in ('width', 'heads', 'layers')}
    length = data['sequence_length']
    return {
        'model': 'GPT',
        'arguments': {'vocabulary': model['vocab_size'], 'length': length, **same},
        'shape': [length],
        'integers': data['vocab_size'],
        'optimizer': {
            'name': 'AdamW',
            'lr': optimizer.learning_rate,
            'betas': [0.9, optimizer.options['b2']],
            'weight_decay': optimizer.weight_decay,
        },
    }


def rates(config: Config, facts: Mapping[str, Any], seconds: float) -> dict[str, float | None]:
    """Tokens a second, FLOPs a step and MFU by both counts."""
    model, length = config.model.options, config.data.options['sequence_length']
    tokens = config.train.batch_size * length
    shape = (facts['without_lookups'], model['layers'], model['width'], length, tokens)
    found: dict[str, float | None] = {
        'sequence_length': length,
        'tokens_per_second': tokens / seconds,
    }
    for name, flops in {'palm': palm(*shape), 'causal': palm(*shape, causal=True)}.items():
        found[f'flops_{name}'] = flops
        found[f'mfu_{name}'] = chips.mfu(flops, seconds, facts['device_kind'], facts['devices'])
    return found


COLUMNS: gpu.Columns = {
    **gpu.BATCH,
    'tokens a second': ('tokens_per_second', 1, ',.0f'),
    'MFU': ('mfu_palm', 1, '.1%'),
    'MFU, causal': ('mfu_causal', 1, '.1%'),
    **gpu.PEAK,
}


def ablation(size: str, arguments: argparse.Namespace) -> list[list[str]]:
    """Our step with one change at a time, each in a process of its own: rows of a table."""
    rows, base = [], None
    usual = config_of(size, arguments.batch, arguments.set)
    batch, length = usual.train.batch_size, usual.data.options['sequence_length']
    unchanged: tuple[dict[str, Any], dict[str, str]] = ({}, {})
    changes = {k: v for k, v in variants(batch, length).items() if arguments.only in k}
    measured = {'the config': unchanged, **changes, 'the config again': unchanged}
    for name, (fields, environment) in measured.items():
        found: dict[str, Any] = {'case': size, 'set': arguments.set, 'change': name}
        try:
            config = config_of(size, batch, {**arguments.set, **fields})
            side = gpu.ours(config, arguments, environment)
            results = gpu.race({'bigjax': side}, arguments.rounds, arguments.steps)
            found |= gpu.record(config, results['bigjax'], rates)
        except ConfigError as error:
            found |= {'error': str(error)}
        if rate := found.get('tokens_per_second'):
            base = base or rate
            found['speed'] = rate / base
        gpu.emit(found, arguments.out)
        rows.append([size, name, *gpu.cells(found, COLUMNS | SPEED)])
    return rows


SPEED: gpu.Columns = {'speed': ('speed', 1, '.3f')}
"""Tokens a second over those of the first measurement that there was."""


def main(argv: list[str] | None = None) -> None:
    """Prints a line of JSON for each measurement, and a table of them."""
    parser = gpu.parser(__doc__)
    parser.add_argument('--sizes', default='124m,350m,1.3b', help=f'some of {", ".join(SIZES)}')
    parser.add_argument('--ablate', action='store_true', help='ours, one change at a time')
    parser.add_argument('--only', default='', help='changes whose name has this')
    arguments = gpu.parse(parser, argv)
    arguments.sides = ['bigjax'] if arguments.ablate else arguments.sides
    arguments.sizes = ['tiny'] if arguments.smoke else arguments.sizes.split(',')
    if unknown := set(arguments.sizes) - set(SIZES):
        parser.error(f'--sizes: expected some of {", ".join(SIZES)}, got {", ".join(unknown)}')
    print(FORMULA)
    rows = []
    for size in arguments.sizes:
        if arguments.ablate:
            rows += ablation(size, arguments)
        else:
            config = config_of(size, arguments.batch, arguments.set)
            spec = torch_spec(config)
            rows += gpu.against_pytorch(size, config, spec, arguments, rates, COLUMNS)
    if arguments.ablate:
        print_table(['size', 'change', 'ms a step', *COLUMNS, *SPEED], rows)
    else:
        print_table(['size', 'side', 'ms a step', *COLUMNS, 'bigjax / pytorch'], rows)


if __name__ == '__main__':
    main()
