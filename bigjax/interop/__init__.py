"""Pretrained weights in and out: the Hugging Face hub's folders, GGUF, safetensors, StableHLO."""

from bigjax.interop.export import export
from bigjax.interop.weights import (
    Pretrained,
    abstract_params,
    is_pretrained,
    load,
    make_module,
    model_options,
    open_pretrained,
    read_params,
    require_tokens,
)

__all__ = [
    'Pretrained',
    'abstract_params',
    'export',
    'is_pretrained',
    'load',
    'make_module',
    'model_options',
    'open_pretrained',
    'read_params',
    'require_tokens',
]
