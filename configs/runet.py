"""RU-Net: a TV-softmax layer of one iteration as the head (eq. 7). Table 1, row 3: test 63.47 %.

At the paper's lambda = 1e-6 the layer moves no probability by more than 2e-6: compare with
configs/runet_control.py before crediting it. Lambda may be learned instead, by
--config.hypergrad.method=exact or training_loss.

    python -m tvjax.main --config=configs/runet.py
    python -m tvjax.main --config=configs/runet.py:paper --config.data.directory=DIR
"""

from configs import base


def get_config(preset=None):
    config = base.get_config()
    config.name = "runet"
    config.model.head = "tv_softmax"
    config.regularizer.place = "head"
    return base.with_preset(config, preset)
