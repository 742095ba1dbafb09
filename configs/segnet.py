"""SegNet: the convolutions of VGG16 and, mirrored, a decoder that unpools by indices.

Here four of its five blocks at a quarter of their width; `:paper` has all of them (29.4 million
parameters), with the sizes and the training of the other nets.

    python -m tvjax.main --config=configs/segnet.py
    python -m tvjax.main --config=configs/segnet.py:paper --config.data.directory=DIR
"""

from configs import base


def get_config(preset=None):
    config = base.get_config()
    config.name = "segnet"
    config.model.name = "segnet"
    config.model.depth = 4
    config.schedule.name = "cosine"
    config.augmentation.flips = config.augmentation.turns = True
    config = base.with_preset(config, preset)
    if preset == "paper":
        config.model.depth = 5
    return config
