import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs that tests start, one after another, keep even what compiles in a moment.
os.environ.setdefault("JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import tvjax
from configs import base
from tvjax.data import builder
from tvjax.data.embedded import synthetic

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Runs one test in float64, as every check of a derivative must."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def make_tiles(tmp_path_factory):
    """`seed ->` a tiny prepared set, made anew: 60 tiles of 16 pixels."""

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


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Runs of one process share what they compile, in the files that ask for it only."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for values in (options, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is options:
            yield


@pytest.fixture(scope="session")
def make_predictor():
    """`(net's name, fields of config.model) ->` an untrained net whose answers vary."""
    from tvjax.training.net import make_net  # loads much that most tests do without

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
