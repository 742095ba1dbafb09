"""The real U-Net on real batches: a snapshot of its training, in float64.

    inner: cross-entropy + e^a TV of the training batch     outer: cross-entropy of validation

on the embedded set, or on the tiles of `--data`. The net is narrow and the tiles are cropped, since
float64 convolutions are slow; nothing else is changed. The reference sees one step: `reverse_3` and
`forward_3`, which see three, are to agree with each other and not with it.
Implicit estimators are left out: away from an inner optimum they estimate something else.
"""

from functools import partial

import jax
import jax.numpy as jnp

from configs import lunet_bilevel
from experiments.problems.setting import Setting
from tvjax import hypergrad
from tvjax.data import pipeline
from tvjax.data.sets import open_section
from tvjax.models import make_model
from tvjax.training import parallel, steps
from tvjax.types import Batch

WIDTH, CROP, BATCH, RATE = 4, 32, 8, 2e-3


def make(seed: int, data: str | None = None) -> Setting:
    """Tiles from `data`, as `config.data.directory` has it; None: the embedded set."""
    config = lunet_bilevel.get_config()
    splits = open_section(config.data, directory=data)
    train, val = (_batches(splits[name], seed) for name in ("train", "val"))
    config.model.width = WIDTH
    config.model.dtype = None  # as wide as the parameters: float64 here
    net, head = make_model(**config.model)
    regularizer = steps.Regularizer("loss", "anisotropic", "sum", "log")
    problem = steps.make_problem(net, head, hypergrad.adam(RATE), regularizer)
    draw = parallel.compile_drawing(partial(net.init, train=False))
    variables = draw(jax.random.key(seed), train[0].image[:1])
    variables = jax.tree.map(lambda x: x.astype(jnp.float64), variables)
    # Weighs TV by 0.1 a pixel, as the paper's optimum does at its own sizes.
    a = jnp.log(jnp.asarray(0.1 / (BATCH * CROP * CROP)))
    model_state = {"batch_stats": variables["batch_stats"]}
    return Setting(
        problem=problem,
        state=problem.init(variables["params"], model_state),
        hyper=a,
        inner_batches=train,
        outer_batch=val[0],
        draws=[([t], v) for t, v in zip(train, val, strict=False)],
        estimators={
            "exact": hypergrad.exact(),
            "sgd_formula": hypergrad.sgd_formula(RATE),
            "paper": hypergrad.paper(RATE),
            "preconditioned": hypergrad.preconditioned(RATE),
            "darts": hypergrad.darts(RATE),
            "reverse_3": hypergrad.reverse(3),
            "forward_3": hypergrad.forward(3),
            "forward_online": hypergrad.forward_online(),
            "finite_difference": hypergrad.finite_difference(1, width=1e-4),
        },
        reference=hypergrad.exact(mode="reverse"),
        reference_horizon=None,
        reference_name="jax.grad through one optimiser step",
        snapshots=(1, 10, 50, 100),
    )


def _batches(split, seed: int) -> list[Batch]:
    """Eight batches at most, their centres cropped, images in [0, 1] and float64."""
    indices = pipeline.TrainIndices(len(split), batch_size=BATCH, seed=seed)
    data = pipeline.resident(split)
    low = max(0, data.image.shape[1] - CROP) // 2
    rows = slice(low, low + CROP)
    count = min(8, len(split) // BATCH)
    chosen = (indices[t] for t in range(count))
    return [
        Batch(
            jnp.asarray(data.image[i][:, rows, rows] / 255.0),
            jnp.asarray(data.mask[i][:, rows, rows]),
        )
        for i in chosen
    ]
