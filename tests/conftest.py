import os
import sys
from pathlib import Path

import pytest
import xdist

KEPT = Path(__file__).parents[1] / ".pytest_cache" / "d"
"""What one run of the tests leaves for the next: `pytest --cache-clear` forgets it."""

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Whatever tests compile, or programs that they start, is compiled once.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(KEPT / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Of a program that starts without bytecode, two thirds of the time are Python's own compiler. Who
# wants none beside the sources finds it here.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ.setdefault("PYTHONPYCACHEPREFIX", str(KEPT / "bytecode"))


def pytest_sessionstart(session):
    """Who only hands tests out to others starts them at once, and without JAX."""
    if not xdist.is_xdist_controller(session):
        import jax

        jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Runs one test in float64, as every check of a derivative must."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def make_tiles(tmp_path_factory):
    """`seed ->` a tiny prepared set, made anew: 60 tiles of 16 pixels."""
    from tvjax.data import builder
    from tvjax.data.embedded import synthetic

    def make(seed):
        folder = tmp_path_factory.mktemp("tiles")
        synthetic.write(folder / "coco", tiles=60, seed=seed, progress=False)
        builder.build(
            folder / "coco" / "annotation.json", folder / "coco" / "images", folder / "records",
            size=16, progress=False,
        )  # fmt: skip
        return folder / "records"

    return make


@pytest.fixture(scope="session")
def tiles(make_tiles):
    """The tiny prepared set that tests share, and leave as it is."""
    return make_tiles(0)


@pytest.fixture(scope="session")
def make_predictor():
    """`(net's name, fields of config.model) ->` an untrained net whose answers vary."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import tvjax
    from configs import base
    from tvjax.training.net import make_net

    def make(name, **fields):
        config = base.get_config()
        config.model.update(name=name, **fields)
        net = make_net(config)
        rng = np.random.default_rng(0)

        def draw(path, x):  # in place of net.create(), which takes long to compile
            is_variance = getattr(path[-1], "key", None) == "var"
            drawn = np.ones(x.shape) if is_variance else rng.normal(0, 0.25, x.shape)
            return jnp.asarray(drawn, x.dtype)

        state = jax.tree.map_with_path(
            draw, jax.eval_shape(lambda: net.create(0, net.hyper, (16, 16)))
        )
        return tvjax.Predictor.of(net, state)

    return make
