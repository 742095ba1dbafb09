"""What tests of the experiments share."""

import pytest


@pytest.fixture(scope="session")
def other_tiles(make_tiles):
    """Tiles as many and as large as those of `tiles`, of another seed."""
    return make_tiles(1)
