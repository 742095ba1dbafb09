import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from tvjax import arguments, denoise_tv, losses, total_variation, tv_softmax
from tvjax.models.heads import SIGMOID, make_head, make_loss
from tvjax.scoring import metrics


def masks(seed, shape=(3, 11, 13, 1)):
    rng = np.random.default_rng(seed)
    return (ndimage.gaussian_filter(rng.normal(size=shape), (0, 1, 1, 0)) > 0.1).astype(np.uint8)


def test_binary_cross_entropy_is_its_definition(x64):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(2, 4, 5, 1)), rng.integers(0, 2, (2, 4, 5, 1))
    p = 1 / (1 + np.exp(-z))
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean((1, 2, 3))
    found = losses.binary_cross_entropy(jnp.asarray(z), jnp.asarray(y, jnp.uint8))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_binary_cross_entropy_of_huge_logits_is_finite():
    z = jnp.asarray([1e4, -1e4]).reshape(1, 1, 2, 1)
    assert losses.binary_cross_entropy(z, jnp.ones((1, 1, 2, 1))) == 5e3


@pytest.mark.parametrize("gamma, alpha", [(0.0, None), (2.0, None), (1.5, 0.25)])
def test_focal_is_its_definition(x64, gamma, alpha):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(2, 4, 5, 1)), rng.integers(0, 2, (2, 4, 5, 1))
    p = 1 / (1 + np.exp(-z))
    q = np.where(y == 1, p, 1 - p)
    weight = 1 if alpha is None else np.where(y == 1, alpha, 1 - alpha)
    expected = -(weight * (1 - q) ** gamma * np.log(q)).mean((1, 2, 3))
    found = losses.focal(jnp.asarray(z), jnp.asarray(y, jnp.uint8), gamma=gamma, alpha=alpha)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    if gamma == 0:
        same = losses.binary_cross_entropy(jnp.asarray(z), jnp.asarray(y))
        np.testing.assert_allclose(found, same, rtol=1e-12)


def test_focal_of_huge_logits_is_finite():
    z = jnp.asarray([1e4, -1e4]).reshape(1, 1, 2, 1)
    value, gradient = jax.value_and_grad(lambda z: losses.focal(z, jnp.ones((1, 1, 2, 1))).sum())(z)
    assert value == 5e3
    np.testing.assert_allclose(gradient.ravel(), [0, -0.5], atol=1e-6)


def test_dice_by_hand():
    p = jnp.asarray([1.0, 0.5, 0.5, 0.0]).reshape(2, 2, 1)
    y = jnp.asarray([1, 1, 0, 0], jnp.uint8).reshape(2, 2, 1)
    assert losses.dice_of_probabilities(p, y, smoothing=1.0) == pytest.approx(
        1 - (2 * 1.5 + 1) / (2 + 2 + 1)
    )
    empty = jnp.zeros((4, 4, 1))
    assert losses.dice_of_probabilities(empty, empty) == 0
    assert losses.dice_of_probabilities(empty + 1, empty + 1) == 0
    assert losses.dice_of_probabilities(empty, empty + 1) == pytest.approx(1 - 1 / 17)


def test_dice_takes_logits_as_the_other_losses_do():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, 4, 5, 2)) * 3
    y = masks(1, z.shape)
    p = 1 / (1 + np.exp(-z))
    found = losses.dice(jnp.asarray(z), jnp.asarray(y), smoothing=0.5)
    axes = 1, 2, 3
    truth = 1 - (2 * (p * y).sum(axes) + 0.5) / ((p + y).sum(axes) + 0.5)
    np.testing.assert_allclose(found, truth, rtol=1e-6)
    huge = jnp.asarray([1e4, -1e4]).reshape(1, 1, 2, 1)
    value, gradient = jax.value_and_grad(lambda z: losses.dice(z, huge > 0).sum())(huge)
    assert value == 0 and not gradient.any()


LOSSES = losses.binary_cross_entropy, losses.focal, losses.dice


@pytest.mark.parametrize("f", LOSSES)
def test_a_mask_is_no_logit_and_a_logit_no_probability(f):
    y = jnp.asarray(masks(0, (1, 4, 5, 1))) > 0
    refuses(lambda: f(y, y), "logits must be real numbers; got bool")
    refuses(lambda: jax.jit(f)(y, y), "logits must be real numbers; got bool")
    refuses(
        lambda: losses.dice_of_probabilities(jnp.full((1, 4, 5, 1), -2.0), y),
        r"probabilities must be in \[0, 1\]; got -2.0; of logits take tvjax.dice",
    )


@pytest.mark.parametrize("name", ["bce", "dice", "focal"])
def test_losses_are_one_an_image_for_any_head_and_have_their_derivatives(x64, name):
    loss = make_loss(name=name, mix=0.25, dice_smoothing=0.5, focal_gamma=2.0, focal_alpha=0.3)
    rng = np.random.default_rng(1)
    two, along = jnp.asarray(rng.normal(size=(2, 2, 4, 5, 2)))
    y = jnp.asarray(rng.integers(0, 2, (2, 4, 5, 1)), jnp.uint8)
    softmax, tv = (
        make_head(name=name, num_iterations=1, kind="anisotropic")
        for name in ("softmax", "tv_softmax")
    )

    def all_heads(t):
        z, lam = two + t * along, 0.1 + t
        one = z[..., 1:] - z[..., :1]
        found = loss(SIGMOID, one, lam, y), loss(softmax, z, lam, y), loss(tv, z, lam, y)
        return jnp.stack([*found, loss(tv, z, 0 * lam, y)])

    with_slopes = jax.jit(lambda t: jax.jvp(all_heads, (t,), (jnp.ones_like(t),)))
    values, slopes = with_slopes(0.0)
    assert values.shape == (4, 2)
    # Two logits through a softmax, or TV-softmax of weight 0, are one through a sigmoid.
    np.testing.assert_allclose(values[1::2], np.stack([values[0]] * 2), rtol=1e-10)
    h = 1e-5
    differences = (with_slopes(h)[0] - with_slopes(-h)[0]) / (2 * h)
    np.testing.assert_allclose(slopes, differences, rtol=1e-6)
    alone = loss(SIGMOID, two[1, ..., 1:] - two[1, ..., :1], 0.1, y[1])
    np.testing.assert_allclose(values[0, 1], alone, rtol=1e-12)


def test_iou_and_f1_by_hand():
    p = jnp.asarray([0.9, 0.5, 0.7, 0.1]).reshape(2, 2, 1)  # 0.5 is not above the threshold
    y = jnp.asarray([1, 1, 0, 0]).reshape(2, 2, 1)
    assert metrics.iou(p, y) == pytest.approx(1 / 3)
    assert metrics.counts(p, y).f1 == pytest.approx(1 / 2)
    assert metrics.iou(p, y, threshold=0.4) == pytest.approx(2 / 3)


def test_empty_on_empty_is_perfect_and_anything_on_empty_is_not():
    empty = jnp.zeros((4, 4, 1))
    assert metrics.iou(empty, empty) == 1 and metrics.counts(empty, empty).f1 == 1
    assert metrics.iou(empty + 1, empty) == 0 and metrics.iou(empty, empty + 1) == 0
    with pytest.raises(ValueError, match=r"probabilities .*\(2, 0, 2, 1\)"):
        metrics.iou(jnp.zeros((2, 0, 2, 1)), jnp.zeros((2, 0, 2, 1)))


def refuses(call, match):
    with pytest.raises(ValueError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


PAIRS = [
    *LOSSES, losses.dice_of_probabilities,
    metrics.counts, metrics.iou,
]  # fmt: skip


@pytest.mark.parametrize("f", PAIRS)
def test_a_pair_that_does_not_fit_is_refused_by_name(f):
    p, y = jnp.full((2, 4, 5, 1), 0.4), jnp.asarray(masks(0, (2, 4, 5, 1)))
    given = "logits" if f in LOSSES else "probabilities"
    for other in (y[:1], y[..., 0], y[:, :, :1], jnp.concatenate([y, y], -1)):
        refuses(lambda other=other: f(p, other), rf"mask must have the shape of {given}, \(2, 4")
    refuses(lambda: f(p[0, ..., 0], y[0, ..., 0]), r"\[..., H, W, C\]; got shape \(4, 5\)")
    refuses(lambda: f(p * 1j, y), f"{given} must be real; got complex64")
    refuses(lambda: f(p, y * 1j), "mask must be real; got complex64")
    for bad in (255, -1, np.nan):
        mask = y.astype(jnp.float32).at[1, 2, 3].set(bad)
        for concrete in (mask, np.asarray(mask)):
            refuses(lambda mask=concrete: f(p, mask), f"mask must be .*; got {bad}")
        found = jnp.asarray(jax.jit(f)(p, mask))
        assert jnp.isnan(found[..., 1]).all() and jnp.isfinite(found[..., 0]).all()
    if given == "probabilities":
        for bad in (1.5, -2.0, np.nan):
            wrong = p.at[1, 0, 0].set(bad)
            refuses(
                lambda wrong=wrong: f(wrong, y), rf"probabilities must be in \[0, 1\]; got {bad}"
            )
            found = jnp.asarray(jax.jit(f)(wrong, y))
            assert jnp.isnan(found[..., 1]).all() and jnp.isfinite(found[..., 0]).all()


def test_no_pixel_has_no_mean_loss_and_no_image_no_loss():
    for f in (*LOSSES, losses.dice_of_probabilities):
        assert f(jnp.zeros((0, 4, 4, 1)), jnp.zeros((0, 4, 4, 1))).shape == (0,)
        refuses(lambda f=f: f(jnp.zeros((2, 0, 4, 1)), jnp.zeros((2, 0, 4, 1))), r"\(2, 0, 4, 1\)")


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_low_precision_adds_up_in_float32(dtype):
    rng = np.random.default_rng(0)
    p = jnp.asarray(rng.random((300, 300, 1)), dtype)  # their sum is beyond float16's 65504 / 1.5
    y = jnp.asarray(masks(0, (1, 300, 300, 1))[0])
    for f in (*LOSSES, losses.dice_of_probabilities):
        assert f(p, y).dtype == jnp.float32
        np.testing.assert_allclose(f(p, y), f(p.astype(jnp.float32), y), rtol=1e-5)
    third = jnp.full((1, 1, 1), 0.3, dtype)
    truth = jnp.asarray(float(third[0, 0, 0]) > 0.3).reshape(1, 1, 1)
    assert metrics.iou(third, truth, threshold=0.3) == 1


def test_options_out_of_range_are_refused_by_name():
    z, y = jnp.zeros((4, 4, 1)), jnp.ones((4, 4, 1))
    for value in (-0.1, 1.5, np.float32(-1), jnp.float32(jnp.nan)):
        for f in (metrics.counts, metrics.iou):
            refuses(lambda v=value, f=f: f(z, y, threshold=v), f"threshold must .*; got {value}")
        refuses(lambda v=value: losses.focal(z, y, alpha=v), f"alpha must .*; got {value}")
    for value in (-1.0, np.float32(-1), jnp.float32(jnp.inf)):
        refuses(lambda v=value: losses.focal(z, y, gamma=v), f"gamma must .*; got {value}")
        refuses(lambda v=value: losses.dice(z, y, smoothing=v), f"smoothing must .*; got {value}")
    assert jnp.isnan(jax.jit(lambda t: metrics.iou(z, y, threshold=t))(-1.0))


@pytest.mark.parametrize("several", [np.array([0.25, 0.75]), np.full((2, 1, 1, 1, 1), 0.5)])
@pytest.mark.parametrize(
    "f, name",
    [
        (metrics.counts, "threshold"), (losses.focal, "gamma"), (losses.focal, "alpha"),
        (losses.dice, "smoothing"), (total_variation, "delta"), (denoise_tv, "tolerance"),
        (tv_softmax, "step_size"),
    ],
)  # fmt: skip
def test_options_are_one_number(f, name, several):
    # Weights per class, as other libraries take them, would be broadcast along the channels.
    z, y = jnp.zeros((2, 4, 4, 1)), jnp.ones((2, 4, 4, 1))
    second = {total_variation: (), denoise_tv: (0.1,), tv_softmax: (0.1,)}.get(f, (y,))
    bare = inspect.unwrap(f)  # without the tests' checks of types, as users have it
    refuses(lambda: bare(z, *second, **{name: several}), f"{name} must be one number")
    for value in (True, np.bool_(False), jnp.asarray(True), "0.5", {}):
        refuses(lambda v=value: bare(z, *second, **{name: v}), f"{name} must hold numbers; got")


@pytest.mark.parametrize(
    "f, name, values",
    [
        (total_variation, "delta", (1e-40, 1e-46, 1e39)), (losses.dice, "smoothing", (1e-40, 1e39)),
        (denoise_tv, "tolerance", (1e-40, 1e39)), (denoise_tv, "lam", (1e39,)),
        (tv_softmax, "step_size", (1e-40, 1e39)), (losses.focal, "gamma", (1e39,)),
    ],
)  # fmt: skip
def test_what_float32_cannot_hold_is_refused(f, name, values):
    z, y = jnp.zeros((2, 4, 4, 1)), jnp.ones((2, 4, 4, 1))
    second = {total_variation: (), denoise_tv: (0.1,), tv_softmax: (0.1,)}.get(f, (y,))
    second = () if name == "lam" else second
    bare = inspect.unwrap(f)
    for value in values:
        for given in (value, np.float64(value)):
            told = re.escape(f"; got {value}")
            refuses(lambda v=given: bare(z, *second, **{name: v}), f"{name} must be .*{told}$")


def test_a_chosen_share_has_no_slack():
    z, y = jnp.zeros((4, 4, 1)), jnp.ones((4, 4, 1))
    for f, name in ((metrics.iou, "threshold"), (losses.focal, "alpha")):
        for value in (-5e-4, 1.0005):
            refuses(lambda f=f, n=name, v=value: f(z, y, **{n: v}), rf"{name} must be in \[0, 1\]")


@pytest.mark.parametrize("f", LOSSES)
def test_logits_are_finite(f):
    z, y = jnp.zeros((2, 4, 5, 1)), jnp.asarray(masks(0, (2, 4, 5, 1)))
    for bad in (np.inf, -np.inf, np.nan):
        for place in ((1, 0, 0), (1, 3, 4)):
            logits = z.at[place].set(bad)
            refuses(lambda x=logits: f(x, y), f"logits must be finite; got {bad}")
            found = jax.jit(f)(logits, y)
            assert not jnp.isfinite(found[..., 1]).any() and jnp.isfinite(found[..., 0]).all()


def test_counts_go_on_beyond_what_float32_counts():
    ones = jnp.ones((4100, 4100, 1), bool)
    assert metrics.counts(ones, ones).true_positive == 4100 * 4100


@pytest.mark.parametrize("name", ["softmax", "tv_softmax"])
def test_heads_refuse_what_does_not_fit(name):
    head = make_head(name=name, num_iterations=1, kind="anisotropic")
    z, y = jnp.zeros((2, 4, 5, 2)), jnp.zeros((2, 4, 5, 1))
    refuses(lambda: head.cross_entropy(z, 0.1, y[:1]), r"mask must have the shape .*\(1, 4, 5, 1\)")
    refuses(lambda: head.cross_entropy(z[..., :1], 0.1, y), r"2 channels; got shape \(2, 4, 5, 1\)")
    refuses(lambda: head.cross_entropy(z, 0.1, y - 1), "mask must be 0 or 1; got -1")
    assert jnp.isnan(jax.jit(head.cross_entropy)(z, 0.1, y + 255)).all()
    refuses(lambda: make_head(name=name, num_iterations=-1, kind="isotropic"), "least 0; got -1")


def test_what_cannot_be_has_no_derivative():
    """A value is NaN, and so is each derivative, by which something may be learned unseen."""
    x = jax.random.normal(jax.random.key(0), (4, 4, 1))
    mask = x > 0
    for loss in (
        lambda v: losses.focal(x, mask, gamma=v), lambda v: losses.focal(x, mask, alpha=v),
        lambda v: losses.dice(x, mask, smoothing=v), lambda v: losses.dice(x, mask * v),
        lambda v: total_variation(x, weights=v), lambda v: denoise_tv(x, v).image.sum(),
        lambda v: total_variation(x, kind="huber", delta=v),
        lambda v: tv_softmax(x, v).sum(),
    ):  # fmt: skip
        assert jnp.isnan(jax.grad(loss)(-1.5)) and jnp.isfinite(jax.grad(loss)(0.5))


@pytest.mark.parametrize("x", [None, 2**70, [[1.0], [1.0, 2.0]], np.array([None])])
def test_what_holds_no_numbers_is_named(x):
    with pytest.raises(ValueError, match="x must hold numbers; got ") as error:
        arguments.real("x", x)
    assert "\n" not in str(error.value)
