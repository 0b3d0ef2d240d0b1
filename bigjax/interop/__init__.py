"""Pretrained weights in and out: the Hugging Face hub's folders, GGUF, safetensors, StableHLO."""

from bigjax.interop.weights import load

__all__ = ['load']
