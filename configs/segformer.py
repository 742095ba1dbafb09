"""SegFormer: a mix transformer with an all-MLP decoder.

Here half as wide as B0; `:paper` is B0 (3.7 million parameters), with the sizes and the training of
the other nets.

    python -m tvjax.main --config=configs/segformer.py
    python -m tvjax.main --config=configs/segformer.py:paper --config.data.directory=DIR
"""

from configs import base


def get_config(preset=None):
    config = base.get_config()
    config.name = "segformer"
    config.model.name = "segformer"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.01
    config.schedule.name = "cosine"
    config.schedule.warmup = 40
    config.augmentation.flips = config.augmentation.turns = True
    config.augmentation.brightness = 0.2
    config = base.with_preset(config, preset)
    if preset == "paper":
        config.model.width = 32
    return config
