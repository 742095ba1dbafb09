"""LU-Net: total variation in the loss (eq. 9), lambda fixed. Table 1, row 4: test IoU 63.72 %.

python -m tvjax.main --config=configs/lunet.py --config.regularizer.weight=1e-6
python -m tvjax.main --config=configs/lunet.py:paper --config.data.directory=DIR
"""

from configs import base


def get_config(preset=None):
    config = base.get_config()
    config.name = "lunet"
    config.regularizer.place = "loss"
    return base.with_preset(config, preset)
