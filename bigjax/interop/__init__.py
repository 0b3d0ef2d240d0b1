"""Pretrained weights in and out: the Hugging Face hub's folders, GGUF, safetensors, StableHLO."""

from bigjax.interop.weights import (
    is_pretrained,
    load,
    open_pretrained,
    read_params,
    require_tokens,
)

__all__ = ['is_pretrained', 'load', 'open_pretrained', 'read_params', 'require_tokens']
