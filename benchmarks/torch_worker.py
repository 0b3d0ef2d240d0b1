"""PyTorch's side of a benchmark: a training step of a model, as `workers.serve` wants it.

The specification: `model`, a class of `torch_models`, and its `arguments`; `batch_size`; `shape` of
an example's inputs, `integers` that they are below, and `classes` of its targets; `compute`, the
dtype under autocast; `optimizer`, and `clip`, the largest norm of a gradient or None; `compile`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import torch_models
from benchmarks.workers import Step, serve


def start(spec: dict[str, Any]) -> tuple[Callable[[], dict[str, Any]], Step]:
    """Builds; the first step compiles."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision('high')  # TF32 where something is float32
    torch.backends.cudnn.benchmark = True
    is_gpu = torch.cuda.is_available()
    device = torch.device('cuda' if is_gpu else 'cpu')
    model = getattr(torch_models, spec['model'])(**spec['arguments']).to(device)
    inputs, targets = batch(spec, device)
    if len(spec['shape']) == 3:
        model, inputs = (x.to(memory_format=torch.channels_last) for x in (model, inputs))
    optimizer = make_optimizer(model, spec['optimizer'])
    dtype = getattr(torch, spec['compute'])

    def loss_of(inputs: torch.Tensor) -> torch.Tensor:
        if inputs.dtype == torch.uint8:
            inputs = (inputs.float() / 255 - 0.5) / 0.2
        return F.cross_entropy(model(inputs), targets)

    forward = torch.compile(loss_of) if spec['compile'] else loss_of

    def step() -> Callable[[], object]:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = forward(inputs)
        loss.backward()
        if spec['clip'] is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), spec['clip'])
        optimizer.step()
        if not is_gpu:
            return float  # the step is over
        done = torch.cuda.Event()
        done.record()
        return done.synchronize

    counted = sum(parameter.numel() for parameter in model.parameters())
    looked_up = model.positions.weight.numel() if spec['model'] == 'GPT' else 0
    fixed = {
        'version': f'torch {torch.__version__}' + (', compiled' if spec['compile'] else ', eager'),
        'device_kind': torch.cuda.get_device_name() if is_gpu else 'cpu',
        'devices': 1,
        'parameters': counted,
        'without_lookups': counted - looked_up,
    }

    def facts() -> dict[str, Any]:
        peak = torch.cuda.max_memory_allocated() if is_gpu else None
        return fixed | {'peak_memory_bytes': peak}

    return facts, step


def batch(spec: dict[str, Any], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Random integers: images as uint8, and a class each; or token ids, and the next ones."""
    shape = (spec['batch_size'], *spec['shape'])
    inputs = torch.randint(spec['integers'], shape, device=device)
    if len(spec['shape']) == 1:
        return inputs, inputs.roll(-1, 1).flatten()
    return inputs.to(torch.uint8), torch.randint(spec['classes'], shape[:1], device=device)


def make_optimizer(model: torch.nn.Module, options: dict[str, Any]) -> torch.optim.Optimizer:
    """Fused; it decays what has more than one axis, as nanoGPT does."""
    options = dict(options)
    kind = getattr(torch.optim, options.pop('name'))
    decay = options.pop('weight_decay')
    parameters = list(model.parameters())
    groups = [
        {'params': [p for p in parameters if p.ndim > 1], 'weight_decay': decay},
        {'params': [p for p in parameters if p.ndim <= 1], 'weight_decay': 0.0},
    ]
    return kind(groups, fused=True, **options)


if __name__ == '__main__':
    serve(start)
