"""The control of RU-Net: the same net with the same softmax head and lambda = 0.

python -m tvjax.main --config=configs/runet_control.py --config.seed=1
"""

from configs import base


def get_config(preset=None):
    config = base.get_config()
    config.name = "runet_control"
    config.model.head = "softmax"
    return base.with_preset(config, preset)
