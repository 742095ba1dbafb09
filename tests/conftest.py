import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Runs one test in float64, as every check of a derivative must."""
    with jax.enable_x64(True):
        yield
