"""LU-Net whose lambda follows Algorithm 1 as printed, with the TV gradient at theta(t+1).

Not the gradient of the validation loss, least of all under Adam: for comparison with
configs/lunet_bilevel.py.

    python -m tvjax.main --config=configs/lunet_printed.py
"""

from configs import lunet_bilevel


def get_config(preset=None):
    config = lunet_bilevel.get_config(preset)
    config.name = config.name.replace("lunet_bilevel", "lunet_printed")
    config.hypergrad.method = "paper"
    return config
