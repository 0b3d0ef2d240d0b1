"""Pretrained weights in and out: the Hugging Face hub's folders, GGUF, safetensors, StableHLO."""

from bigjax.interop.export import to_hub, to_safetensors, to_stablehlo
from bigjax.interop.weights import (
    is_pretrained,
    load,
    open_pretrained,
    read_params,
    require_tokens,
)

__all__ = [
    'is_pretrained',
    'load',
    'open_pretrained',
    'read_params',
    'require_tokens',
    'to_hub',
    'to_safetensors',
    'to_stablehlo',
]
