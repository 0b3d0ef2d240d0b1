"""Pretrained weights in and out: the Hugging Face hub's folders, GGUF, safetensors, StableHLO."""

from bigjax.interop.export import export
from bigjax.interop.run import import_run
from bigjax.interop.weights import load, model_options, open_pretrained, read_params

__all__ = ['export', 'import_run', 'load', 'model_options', 'open_pretrained', 'read_params']
