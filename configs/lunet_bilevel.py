"""LU-Net whose lambda is learned by the exact hypergradient (section 7, Algorithm 1, corrected).

The paper gives no figure for it.

    python -m tvjax.main --config=configs/lunet_bilevel.py
    python -m tvjax.main --config=configs/lunet_bilevel.py:paper --config.data.directory=DIR
"""

from configs import lunet


def get_config(preset=None):
    config = lunet.get_config(preset)
    config.name = config.name.replace("lunet", "lunet_bilevel")
    config.hypergrad.method = "exact"
    return config
