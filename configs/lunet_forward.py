"""LU-Net whose lambda is learned through five steps at a time.

Forward mode gives the same number for one lambda as reverse mode (`hypergrad.method=reverse`), at
three quarters of the cost (9F per step against 12F), and keeps no states.

    python -m tvjax.main --config=configs/lunet_forward.py
"""

from configs import lunet_bilevel


def get_config(preset=None):
    config = lunet_bilevel.get_config(preset)
    config.name = config.name.replace("lunet_bilevel", "lunet_forward")
    config.hypergrad.method = "forward"
    config.hypergrad.steps = 5
    config.hypergrad.every = 5
    return config
