"""U-Net + TV: a plain U-Net whose probabilities are denoised after training (eq. 3).

The weight is chosen by validation IoU from 0.01, 0.02, ..., 0.20 (eq. 13). Table 1, row 2: test IoU
61.69 % at 0.09.

    python -m tvjax.main --config=configs/unet_tv.py
    python -m tvjax.main --config=configs/unet_tv.py:paper --config.data.directory=DIR
"""

from configs import base


def get_config(preset=None):
    config = base.get_config()
    config.name = "unet_tv"
    config.denoise.weights = tuple(k / 100 for k in range(1, 21))
    return base.with_preset(config, preset)
