"""Pretrained weights in and out: the Hugging Face hub's folders, GGUF, safetensors, StableHLO."""

from bigjax.interop.weights import load, model_options, open_pretrained, read_params

__all__ = ['load', 'model_options', 'open_pretrained', 'read_params']
