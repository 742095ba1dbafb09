"""LU-Net whose lambda is learned through five steps at a time.

Forward, which for one lambda gives the same number as backwards (`hypergrad.method=reverse`) and on
a CPU costs a tenth: second-order convolutions miss XLA's fast path there.

    python -m tvjax.main --config=configs/lunet_unrolled.py
"""

from configs import lunet_bilevel


def get_config(preset=None):
    config = lunet_bilevel.get_config(preset)
    config.name = config.name.replace("lunet_bilevel", "lunet_unrolled")
    config.hypergrad.method = "forward"
    config.hypergrad.steps = 5
    config.hypergrad.every = 5
    return config
