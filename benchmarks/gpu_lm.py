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
from bigjax import chips
from bigjax import config as configs
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


def variants(batch: int) -> dict[str, tuple[dict[str, Any], dict[str, str]]]:
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
        'remat: dots': ({'model.remat': 'dots'}, {}),
        'remat: full': ({'model.remat': 'full'}, {}),
        'layers scanned': ({'model.scan': True}, {}),
        'layers unrolled': ({'model.scan': False}, {}),
        'vocabulary not padded (50,257)': ({'model.vocab_size': 50_257}, {}),
        'logits padded too (50,304)': ({'data.vocab_size': 50_304}, {}),
        'chunked cross-entropy': ({'task.chunk': 128}, {}),
        'JAX_OPTIMIZATION_LEVEL=O1': ({}, {'JAX_OPTIMIZATION_LEVEL': 'O1'}),
        'no Triton GEMM': ({}, flags('--xla_gpu_enable_triton_gemm=false')),
        'latency-hiding scheduler': ({}, flags('--xla_gpu_enable_latency_hiding_scheduler=true')),
    }


def config_of(size: str, batch: int | None, changes: Mapping[str, Any]) -> Config:
    """That size on random tokens, never evaluated or saved. Raises: ConfigError."""
    preset, usual, shape = SIZES[size]
    path = f'{ROOT / "configs" / "gpt2.py"}:{preset}'
    length = configs.load(path).data.options['sequence_length']
    data = {'name': 'synthetic', 'kind': 'tokens', 'examples': 4096, 'sequence_length': length}
    fixed = {
        'data': {**data, 'vocab_size': 50_257},
        'train.batch_size': batch or usual,
        'eval.every': NEVER,
        'checkpoint.every': NEVER,
    }
    values = {**fixed, **shape, **changes}
    return configs.load(path, [(key, str(value)) for key, value in values.items()])


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


def record(config: Config, result: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of one side: its facts, or its error."""
    if 'error' in result:
        return {'error': result['error']}
    timed = gpu.timings(result)
    model, length = config.model.options, config.data.options['sequence_length']
    batch, seconds = config.train.batch_size, timed['step_seconds']['median']
    shape = (timed['without_lookups'], model['layers'], model['width'], length, batch * length)
    flops = {'palm': palm(*shape), 'causal': palm(*shape, causal=True)}
    kind, devices = timed['device_kind'], timed['devices']
    return {
        'batch_size': batch,
        'sequence_length': length,
        'compute': config.precision.compute,
        **timed,
        'tokens_per_second': batch * length / seconds,
        'flops_per_step': flops,
        'mfu': {name: chips.mfu(f, seconds, kind, devices) for name, f in flops.items()},
    }


def against_pytorch(arguments: argparse.Namespace) -> list[list[str]]:
    """Each size by each side, in turn: rows of a table."""
    rows = []
    for size in arguments.sizes:
        config = config_of(size, arguments.batch, arguments.set)
        sides = {
            'bigjax': gpu.ours(config, arguments),
            'pytorch': gpu.theirs(torch_spec(config), config, arguments),
        }
        chosen = {side: sides[side] for side in arguments.sides}
        results = gpu.race(chosen, arguments.rounds, arguments.steps)
        gpu.same_size(results)
        for side, result in results.items():
            found = {'size': size, 'side': side, **record(config, result)}
            gpu.emit(found, arguments.out)
            rows.append([size, side, *row(found)])
        if found := gpu.compared(results):
            gpu.emit({'size': size, 'compared': found}, arguments.out)
            rows[-1].append(f'{found["median over rounds"]:.3f}')
    return [cells + [''] * (9 - len(cells)) for cells in rows]


def ablation(arguments: argparse.Namespace) -> list[list[str]]:
    """Our step with one change at a time, each in a process of its own: rows of a table."""
    rows = []
    arguments.sides = ['bigjax']
    for size in arguments.sizes:
        batch = arguments.batch or SIZES[size][1]
        chosen = {
            name: change for name, change in variants(batch).items() if arguments.only in name
        }
        base = None
        for name, (changes, environment) in {
            'the config': ({}, {}), **chosen, 'the config again': ({}, {})
        }.items():  # fmt: skip
            found = {'size': size, 'change': name}
            try:
                config = config_of(size, batch, {**arguments.set, **changes})
                side = gpu.ours(config, arguments, environment)
                results = gpu.race({'bigjax': side}, arguments.rounds, arguments.steps)
                found |= record(config, results['bigjax'])
            except ConfigError as error:
                found |= {'error': str(error)}
            rate = found.get('tokens_per_second')
            base = base or rate
            if base and rate:
                found['speed'] = rate / base
            gpu.emit(found, arguments.out)
            rows.append([size, name, *row(found), gpu.cell(found.get('speed'), '.3f')])
    return rows


def row(found: Mapping[str, Any]) -> list[str]:
    """The cells of a record."""
    if 'error' in found:
        return ['', found['error'][:80].replace('|', '/'), '', '', '', '']
    step, peak = found['step_seconds'], found['peak_memory_bytes']
    return [
        str(found['batch_size']),
        f'{step["median"] * 1e3:.4g} ({step["p10"] * 1e3:.4g} to {step["p90"] * 1e3:.4g})',
        f'{found["tokens_per_second"]:,.0f}',
        gpu.cell(found['mfu']['palm'], '.1%'),
        gpu.cell(found['mfu']['causal'], '.1%'),
        gpu.cell(peak and peak / 2**30, '.1f'),
    ]


def main(argv: list[str] | None = None) -> None:
    """Prints a line of JSON for each measurement, and a table of them."""
    parser = gpu.parser(__doc__)
    parser.add_argument('--sizes', default='124m,350m,1.3b', help=f'some of {", ".join(SIZES)}')
    parser.add_argument('--ablate', action='store_true', help='ours, one change at a time')
    parser.add_argument('--only', default='', help='changes whose name has this')
    arguments = gpu.parse(parser, argv)
    arguments.sizes = ['tiny'] if arguments.smoke else arguments.sizes.split(',')
    if unknown := set(arguments.sizes) - set(SIZES):
        parser.error(f'--sizes: expected some of {", ".join(SIZES)}, got {", ".join(unknown)}')
    print(FORMULA)
    rows = ablation(arguments) if arguments.ablate else against_pytorch(arguments)
    columns = ['batch', 'ms a step', 'tokens a second', 'MFU', 'MFU, causal', 'peak GiB']
    if arguments.ablate:
        print_table(['size', 'change', *columns, 'speed'], rows)
    else:
        print_table(['size', 'side', *columns, 'bigjax / pytorch'], rows)


if __name__ == '__main__':
    main()
