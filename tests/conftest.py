"""How JAX runs under test: eight virtual CPU devices, no silent broadcasting, compiled code kept.

Set in the environment, before jax is imported, so that commands started by a test run alike.
"""

import logging
import os
import tempfile
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

# (B,) against (B, 1) is an error, not (B, B).
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'

# The second run takes half the time. XLA gives the same bits whether it compiles or loads.
cache = Path(tempfile.gettempdir()) / f'bigjax-tests-{os.getuid()}'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

# A busy machine is no failure: no test is timed.
hypothesis.settings.register_profile('untimed', deadline=None)
hypothesis.settings.load_profile('untimed')


@pytest.fixture
def compilations(caplog):
    """Function's name -> how many programs of it were compiled since the test began."""
    import jax  # not before the environment is set

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        yield lambda name: sum(
            f'Compiling jit({name})' in record.getMessage() for record in caplog.records
        )
