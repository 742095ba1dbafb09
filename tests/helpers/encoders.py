"""A small encoder of the family of EfficientNet-Lite, and weights for any of them."""

import numpy as np
import pytest

from tvjax import fields
from tvjax.models.encoders import efficientnet, weights
from tvjax.models.encoders.efficientnet import Lite, Stage

TINY = Lite(4, (Stage(1, 3, 1, 1, 4), Stage(2, 3, 2, 2, 6)))
"""A member of the family that halves twice."""


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(efficientnet.LITES, "tiny", TINY)
    allowed = fields.or_none(fields.one_of(*efficientnet.LITES))
    monkeypatch.setitem(fields.FIELDS, "model.encoder", allowed)


def arrays_of(lite, seed=0):
    """Weights drawn in the order of the packages' files, whose classifier is at their end."""
    rng, found = np.random.default_rng(seed), {}
    head = [
        ("_conv_head.weight", (1280, lite.stages[-1].features, 1, 1)),
        *((f"_bn1.{word}", (1280,)) for word in weights._NORM),
        ("_bn1.num_batches_tracked", ()),
        ("_fc.weight", (1000, 1280)),
        ("_fc.bias", (1000,)),
    ]
    named = []
    for name, _, shape in weights._arrays(lite, weights._original(lite)):
        named.append((name, shape))
        if name.endswith("running_var"):
            named.append((name.replace("running_var", "num_batches_tracked"), ()))
    for name, shape in [*named, *head]:
        if not shape:
            found[name] = np.zeros((), np.int64)
        elif len(shape) > 1:
            found[name] = 1.4 * rng.normal(size=shape) / np.prod(shape[1:]) ** 0.5
        elif name.endswith(("running_var", "weight")):
            found[name] = rng.uniform(0.5, 1.5, shape)
        else:
            found[name] = rng.normal(0, 0.1, shape)
    return {k: v.astype(np.float32) if v.shape else v for k, v in found.items()}
