"""LU-Net whose lambda is learned through five steps at a time, backwards.

python -m tvjax.main --config=configs/lunet_reverse.py
"""

from configs import lunet_bilevel


def get_config(preset=None):
    config = lunet_bilevel.get_config(preset)
    config.name = config.name.replace("lunet_bilevel", "lunet_reverse")
    config.hypergrad.method = "reverse"
    config.hypergrad.steps = 5
    config.hypergrad.every = 5
    return config
