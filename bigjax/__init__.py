"""bigjax: functional models in JAX and Flax, sharded over meshes, driven by configs."""

__version__ = '0.1.0'
