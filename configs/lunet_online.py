"""LU-Net whose lambda is learned through all steps since the warm-up, forwards (RTHO).

python -m tvjax.main --config=configs/lunet_online.py
"""

from configs import lunet_bilevel


def get_config(preset=None):
    config = lunet_bilevel.get_config(preset)
    config.name = config.name.replace("lunet_bilevel", "lunet_online")
    config.hypergrad.method = "forward_online"
    config.hypergrad.every = 1
    return config
