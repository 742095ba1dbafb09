"""Every field of a run, with its unit and the meaning of its values.

A config is its difference from this one. The values here are those of the small embedded set; what
`paper()` changes makes them the paper's (section 5), for COCO data in `config.data.directory`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from tvjax.types import Config


def get_config() -> Config:
    """A plain U-Net on the embedded set."""
    config: Config = ConfigDict()

    config.name = "unet"  # name of the run, and of its folder under runs/
    config.seed = 0  # seed of the initial parameters and of the order of the batches

    config.data = ConfigDict(
        dict(
            # Prepared records (tvjax.data.prepare), or a folder with images/ and annotation.json or
            # masks/, prepared at first use. None: the embedded set, drawn at first use.
            directory=placeholder(str),
            cache="~/.cache/tvjax",  # where sets that are made at first use are kept
            size=64,  # pixels, height and width of the tiles, if they are prepared at first use
            # How many tiles of a folder to draw, if they are prepared at first use; None: all.
            limit=placeholder(int),
            # Seed of the draw, of the splits, and of the embedded scenes; prepared records have the
            # draw and the splits that they were prepared with.
            seed=0,
            # Keep the tiles on the device, unless they take more than a quarter of its memory;
            # False: stream them from the records. Of several processes each streams its own rows of
            # each batch, whatever is said here.
            resident=True,
            # Learn beside the roofs where they nearly touch, so that predict and evaluate part
            # neighbours. Needs tiles prepared with --boundaries, or a folder with annotation.json.
            boundaries=False,
        )
    )
    config.model = ConfigDict(
        dict(
            name="unet",  # unet, segnet or segformer
            head="sigmoid",  # sigmoid, softmax (two classes), or tv_softmax (RU-Net)
            head_iterations=1,  # iterations of the head tv_softmax; None: until it converges
            head_kind="anisotropic",  # kind of the head tv_softmax: anisotropic or isotropic
            # Filters of the first block, which double with each one (of segnet: up to 8 times as
            # many); of segformer the channels of one attention head.
            width=16,
            depth=2,  # how often the size is halved (segnet: 5 at most); segformer: blocks a stage
            # A pretrained encoder for unet, whose depth it settles (5): efficientnet_lite0, lite1
            # or lite2. None: the U-Net's own.
            encoder=placeholder(str),
            # The encoder's learning rate, as a part of the others'. 0: frozen, BatchNorm's running
            # statistics too, which are then used in training.
            encoder_rate=1.0,
            # Where the encoder begins: a file of PyTorch (.pth) or safetensors. None: the one that
            # the package of the extra `pretrained` ships. A run needs it for its first step only.
            weights=placeholder(str),
            weights_sha256=placeholder(str),  # digest of that file; None: found when a run begins
            momentum=0.9,  # decay of BatchNorm's running statistics; segformer has none
            dtype="float32",  # type of the net's computation: float32 or bfloat16
            # Precision of the net in float32, where hardware has faster convolutions and products.
            # highest: float32. high: TF32 on an NVIDIA GPU, three bfloat16 products on a TPU.
            # default: TF32 there and one bfloat16 product, faster, but hypergradients are then off
            # by 1 to 5 %, and by 15 % at worst. On a CPU all are one.
            precision="highest",
        )
    )
    config.regularizer = ConfigDict(
        dict(
            place="none",  # where total variation acts: none (U-Net), loss (LU-Net), head (RU-Net)
            weight=1e-6,  # lambda, or the value from which it is learned
            blocks=1,  # 1: one lambda; n: a map of n x n, one for each block of the tile
            per_class=False,  # a lambda for each class of a softmax head
            kind="anisotropic",  # anisotropic (eq. 2), isotropic or huber
            # TV in the loss is summed over pixels and batch (sum), over pixels with a mean over
            # images (image), or is a mean over pixels (pixel); only the first makes lambda = 1e-6
            # matter. Summed, its weight grows with the batch.
            reduction="sum",
            parametrization="log",  # learn log lambda (log), or lambda clipped at 0 (linear)
        )
    )
    config.optimizer = ConfigDict(
        dict(
            name="adam",  # adam, adamw or sgd
            learning_rate=2e-3,
            b1=0.9,  # decay of the mean gradient; b1, b2 and eps belong to adam and adamw
            b2=0.999,  # decay of the mean squared gradient
            eps=1e-8,  # smallest divisor
            weight_decay=0.0,  # for adamw
            momentum=0.0,  # for sgd, in [0, 1)
        )
    )
    config.schedule = ConfigDict(
        dict(
            # Learning rate after the warm-up: constant, or cosine or linear down to the last
            # of train.steps (a run that is prolonged follows its new length from there on).
            name="constant",
            warmup=0,  # steps over which it rises to optimizer.learning_rate
            final=0.0,  # last rate of cosine and linear, as a part of the highest
        )
    )
    config.loss = ConfigDict(
        dict(
            # What the net is trained by (beside TV): bce, dice, focal, or mix, which is
            # (1 - mix) bce + mix dice.
            train="bce",
            mix=0.5,  # of mix: the share of dice, 0 to 1, or the value from which it is learned
            validation="bce",  # what lambda is learned by, the same names
            dice_smoothing=1.0,  # pixels
            focal_gamma=2.0,  # 0: focal is bce
            focal_alpha=placeholder(float),  # weight of the object, 0 to 1; None: both 1
        )
    )
    config.augmentation = ConfigDict(  # changes training batches only
        dict(
            flips=False,  # left to right and upside down
            turns=False,  # by quarter turns; for square tiles
            brightness=0.0,  # the greatest relative change, below 1
            # Beyond a tile's edge these mirror it, image and mask alike.
            rotation=0.0,  # the greatest angle in degrees, to either side: 180 for any
            scale=0.0,  # s: objects grow or shrink by up to 1 + s times
            crop=0.0,  # the greatest share of the sides cut away, at most 0.9; the rest is enlarged
            contrast=0.0,  # the greatest relative change, below 1, as of saturation
            saturation=0.0,
            hue=0.0,  # the greatest turn of the colours around grey, in degrees
            blur=0.0,  # the greatest standard deviation of a Gaussian, in pixels
        )
    )
    config.hypergrad = ConfigDict(
        dict(
            # none            lambda is fixed
            # exact           through the optimiser's real step
            # sgd_formula     eq. 26, with the TV gradient at theta(t)
            # paper           Algorithm 1 as printed, with the TV gradient at theta(t+1)
            # preconditioned  eq. 26 divided by Adam's running scale
            # darts           eq. 26 by a finite difference
            # reverse         exact through the last `steps` steps, backwards
            # forward         the same, forwards
            # forward_online  through all steps since the warm-up (RTHO)
            # training_loss   no hypergradient: lambda follows the training loss (Jia et al. 2021)
            # soba            implicit; one step on the linear system beside each on the parameters
            # amigo           implicit; some steps on each, the linear system goes on where it ended
            # stocbio         implicit, by a series with a batch for each term
            # f2sa            first order: two trainings, one of which validation pulls aside
            method="none",
            # K of reverse, forward, amigo, stocbio and f2sa; each update then takes K steps at once
            steps=1,
            # How much of the memory of forward_online stays from step to step: below 1 it sees some
            # 1 / (1 - decay) steps.
            decay=1.0,
            solver=dict(  # of soba, amigo and stocbio, but for sigma
                # Size of a step on the linear system; below 2 / the largest eigenvalue of the
                # training loss's Hessian, which is indefinite, plus `damping`.
                scale=0.01,
                damping=0.1,  # added to the Hessian's diagonal
                terms=5,  # steps on the linear system of amigo and stocbio, a batch for each
                sigma=10.0,  # of f2sa: weight of the training loss beside the validation loss
            ),
            # What is learned: any of lambda, learning_rate, weight_decay (of adamw), loss_mix
            # (loss.mix) and tile_weights (one per training tile, from 1, in the mean of the loss),
            # such as ("lambda", "weight_decay"). Each begins at its own field.
            learn=("lambda",),
            learning_rate=0.05,  # learning rate of Adam on log lambda
            rates=dict(  # learning rates of Adam on the others
                learning_rate=0.01,  # on its logarithm
                weight_decay=0.05,  # on its logarithm
                loss_mix=0.05,  # on log(mix / (1 - mix))
                tile_weights=0.1,  # on log(w / (2 - w)): weights stay between 0 and 2
            ),
            warmup=40,  # steps before lambda's first update; Adam's first steps tell nothing of it
            # Steps from one update of lambda to the next. Less than hypergrad.steps counts as so
            # many; f2sa takes no more than hypergrad.steps.
            every=4,
            # How sure the sign of the collected hypergradients' mean must be before it moves what
            # is learned, in standard deviations: noise alone ever moves a quantity with probability
            # 0.046 at most for 2, 0.0027 for 3. 0: each hypergradient moves it.
            significance=0.0,
            # Successive hypergradients averaged to one that significance collects: 1 if their noise
            # is of mini-batches alone, more with forward_online, which remembers it.
            block=1,
            batch_size=16,  # validation images in an update
            statistics="batch",  # what BatchNorm uses in the validation loss: batch or running
            # What follows where the loss of the validation split is a tenth above its lowest at two
            # evaluations running, while something learned moved by more than a factor of 2 since.
            # warn: say so, once. hold: also put what is learned back to where the loss was lowest,
            # and leave it there. none: nothing.
            guard="warn",
        )
    )
    config.denoise = ConfigDict(
        dict(
            # Weights among which the TV denoising of the final probabilities (U-Net + TV, eq. 3)
            # is chosen by evaluation.score on the validation split; none: no denoising.
            weights=(),
            kind="anisotropic",  # or isotropic
        )
    )
    config.train = ConfigDict(
        dict(
            steps=400,
            batch_size=16,  # images in a step, over all devices
            # Parts in which a step takes its batch, one after another, for lack of an accelerator's
            # memory: gradients are averaged. BatchNorm's statistics are those of each part.
            accumulate=1,
            log_every=10,  # steps; what is logged is their mean
            # Steps compiled into one program, of resident tiles. None: 16 on a GPU, else 1 (on a
            # CPU convolutions are some twenty times slower in a loop).
            steps_per_dispatch=placeholder(int),
            # Decay of a moving average of the weights, which is then what is evaluated, predicts
            # and is exported: 0.99 averages over some 100 steps. Training itself, and what is
            # learned by hypergradients, go by the weights. 0: none.
            ema=0.0,
            # Evaluations without a better evaluation.score after which training ends. Its result is
            # then the best checkpoint, whether or not it ended early. 0: it takes all steps, and
            # its result is the last.
            patience=0,
        )
    )
    config.evaluation = ConfigDict(
        dict(
            every=100,  # steps from one evaluation on the validation split to the next
            batch_size=16,
            # What the progress bar shows, and what the best checkpoint and the weight of a
            # denoising are chosen by. pooled_iou: over all pixels of the split. iou: the mean over
            # tiles, the paper's, where an empty prediction on an empty tile counts as 1: where many
            # tiles are empty, it rises as objects are given up.
            score="pooled_iou",
            panels=4,  # validation tiles shown in predictions.png
        )
    )
    config.checkpoint = ConfigDict(
        dict(
            every=100,  # steps; an evaluation with the best evaluation.score so far is saved too
            keep=3,  # checkpoints, the newest
            keep_best=1,  # checkpoints besides, those with the best evaluation.score
        )
    )
    config.parallel = ConfigDict(
        dict(
            map="pmap",  # over several devices: pmap, or jit over NamedSharding
            devices=placeholder(int),  # how many to use; None: all
        )
    )
    return config.lock()  # a field that a config or a flag mistypes is refused


def paper(config: Config) -> Config:
    """The paper's sizes: 100 pixels, width 64, batch 16, Adam 5e-5, 30 epochs of 4,000 tiles.

    Its training too: a constant rate, no augmentation. Its score is the mean IoU over images.
    """
    config.name += "_paper"
    config.data.size = 100
    config.data.limit = 5000
    config.data.directory = ""  # to be given: --config.data.directory=DIR
    config.model.width = 64
    config.optimizer.update(name="adam", weight_decay=0.0)
    config.optimizer.learning_rate = 5e-5
    config.schedule.name = "constant"
    config.schedule.warmup = 0
    config.augmentation.flips = config.augmentation.turns = False
    config.augmentation.brightness = 0.0
    config.train.steps = 7500
    config.train.log_every = 25
    config.evaluation.every = 250
    config.evaluation.score = "iou"
    config.checkpoint.every = 250
    config.hypergrad.warmup = 250
    config.hypergrad.every = 1
    config.hypergrad.learning_rate = 0.02
    return config


def with_preset(config: Config, preset: str | None) -> Config:
    """The config itself, or with the preset named after the colon of `--config=FILE:PRESET`.

    Raises:
      ValueError: for a preset that does not exist.
    """
    presets = {None: lambda config: config, "": lambda config: config, "paper": paper}
    if preset not in presets:
        raise ValueError(f"there is no preset {preset!r}; there is: paper")
    return presets[preset](config)
