"""Pretrained weights in and out: the Hugging Face hub's folders, GGUF, safetensors, StableHLO."""

from bigjax.interop.export import export
from bigjax.interop.weights import (
    is_pretrained,
    load,
    model_options,
    open_pretrained,
    read_params,
    require_tokens,
)

__all__ = [
    'export',
    'is_pretrained',
    'load',
    'model_options',
    'open_pretrained',
    'read_params',
    'require_tokens',
]
