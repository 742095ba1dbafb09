"""U-Net: binary cross-entropy alone. Table 1, row 1: test IoU 61.53 % on 5,000 challenge tiles.

python -m tvjax.main --config=configs/unet.py
python -m tvjax.main --config=configs/unet.py:paper --config.data.directory=DIR
"""

from configs import base


def get_config(preset=None):
    return base.with_preset(base.get_config(), preset)
