"""bigjax: functional models in JAX and Flax, sharded over meshes, driven by configs."""

import importlib
from types import ModuleType

__version__ = '0.1.0'


def __getattr__(name: str) -> ModuleType:
    """`bigjax.interop` after `import bigjax` alone, without making every command wait for it."""
    if name == 'interop':
        return importlib.import_module('bigjax.interop')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
