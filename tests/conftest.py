import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

from tvjax.data import builder, synthetic

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Runs one test in float64, as every check of a derivative must."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def tiles(tmp_path_factory):
    """A tiny prepared set: 60 tiles of 16 pixels."""
    base = tmp_path_factory.mktemp("tiles")
    synthetic.write(base / "coco", tiles=60, seed=0, progress=False)
    builder.build(
        base / "coco" / "annotation.json", base / "coco" / "images", base / "records",
        size=16, progress=False,
    )  # fmt: skip
    return base / "records"
