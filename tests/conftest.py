"""Set JAX up for the tests: eight virtual CPU devices, strict shapes, a warm compilation cache."""

import os
import tempfile
from pathlib import Path

# Read once, when jax is first imported, so set before that.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

import jax

# A silent broadcast of (B,) against (B, 1) to (B, B) is an error, as in the tests of equinox.
jax.config.update('jax_numpy_rank_promotion', 'raise')

_COMPILATION_CACHE = Path(tempfile.gettempdir()) / f'bigjax-test-cache-{os.getuid()}'
jax.config.update('jax_compilation_cache_dir', str(_COMPILATION_CACHE))
