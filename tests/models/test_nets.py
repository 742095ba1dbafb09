"""SegNet and SegFormer: counts, shapes, their own layers, learning, and bilevel training."""

import importlib
from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import initial, state_shapes
from scipy import ndimage
from test_models import random, same_value_and_derivatives

from tvjax import hypergrad
from tvjax.data.sets import open_section
from tvjax.errors import UserError
from tvjax.models import make_model, segformer
from tvjax.models.layers import DepthwiseConv, max_pool_with_indices, max_unpool
from tvjax.models.segformer import Attention, SegFormer
from tvjax.models.segnet import SegNet
from tvjax.training import feeds, loop, parallel, steps
from tvjax.training import state as states
from tvjax.training.setup import make_setup
from tvjax.types import Batch

HASTY = {"xla_llvm_disable_expensive_passes": True, "xla_cpu_parallel_codegen_split_count": 1}
"""Compiling is what takes the time of a few steps."""

# --- layers ---------------------------------------------------------------------------------------


def test_pooling_with_indices_is_flax_max_pool_even_at_ties(x64):
    x = jnp.round(random((2, 6, 4, 3)))  # many ties
    assert jnp.any(x[:, ::2, ::2] == x[:, 1::2, ::2])
    same_value_and_derivatives(
        lambda x: max_pool_with_indices(x)[0], lambda x: nn.max_pool(x, (2, 2), (2, 2)), x
    )


@pytest.mark.parametrize("size", [(6, 4), (5, 7), (1, 1)])
def test_unpooling_puts_maxima_back(x64, size):
    x = random((2, *size, 3))
    pooled, indices = max_pool_with_indices(x)
    back = np.asarray(max_unpool(pooled, indices, size))
    # The oracle: within its window a pixel stays if it is the largest.
    windows = np.arange(size[0])[:, None] // 2 * 100 + np.arange(size[1]) // 2
    for b in range(2):
        for c in range(3):
            image = np.asarray(x[b, ..., c])
            largest = ndimage.maximum(image, windows, np.arange(windows.max() + 1))[windows]
            np.testing.assert_array_equal(back[b, ..., c], np.where(image == largest, image, 0))


def test_unpooling_is_the_adjoint_of_the_pooling_and_its_derivative_is_exact(x64):
    x, y = random((2, 5, 6, 3)), random((2, 3, 3, 3), 1)
    _, indices = max_pool_with_indices(x)
    pullback = jax.vjp(lambda x: max_pool_with_indices(x)[0], x)[1](y)[0]
    np.testing.assert_array_equal(max_unpool(y, indices, (5, 6)), pullback)
    v = random((2, 5, 6, 3), 2)
    gradient = jax.grad(lambda y: jnp.vdot(v, max_unpool(y, indices, (5, 6))))(y)
    np.testing.assert_allclose(jnp.vdot(gradient, y), jnp.vdot(v, pullback), rtol=1e-12)


def test_ties_of_zeros_unpool_to_one_place_each():
    indices = max_pool_with_indices(jnp.zeros((1, 4, 4, 1)))[1]
    back = max_unpool(jnp.ones((1, 2, 2, 1)), indices, (4, 4))[0, :, :, 0]
    np.testing.assert_array_equal(back, np.kron(np.ones((2, 2)), [[1, 0], [0, 0]]))


def test_depthwise_convolution_is_flax_grouped_convolution(x64):
    flax = nn.Conv(3, (3, 3), feature_group_count=3)
    same_value_and_derivatives(
        lambda x, k, b: DepthwiseConv().apply({"params": {"kernel": k, "bias": b}}, x),
        lambda x, k, b: flax.apply({"params": {"kernel": k, "bias": b}}, x),
        random((2, 4, 5, 3)), random((3, 3, 1, 3), 1), random(3, 2),
    )  # fmt: skip


def test_attention_without_reduction_is_flax_attention(x64):
    x = random((2, 3, 4, 6))
    ours = Attention(heads=2, reduction=1)
    params = jax.tree.map(
        lambda p: random(p.shape, p.size), ours.init(jax.random.key(0), x)["params"]
    )
    theirs = {
        name: {
            "kernel": params[name]["kernel"].reshape(6, 2, 3),
            "bias": params[name].get("bias", jnp.zeros(6)).reshape(2, 3),
        }
        for name in ("query", "key", "value")
    }
    theirs["out"] = params["out"] | {"kernel": params["out"]["kernel"].reshape(2, 3, 6)}
    flax = nn.MultiHeadDotProductAttention(num_heads=2, param_dtype=jnp.float64)
    tokens = x.reshape(2, 12, 6)
    np.testing.assert_allclose(
        ours.apply({"params": params}, x).reshape(2, 12, 6),
        flax.apply({"params": theirs}, tokens),
        atol=1e-12,
    )


def test_reduced_keys_are_a_strided_convolution(x64):
    """Keys and values come from `nn.Conv` of r x r patches at stride r."""
    x, r = random((1, 4, 4, 2)), 2
    ours = Attention(heads=1, reduction=r)
    params = ours.init(jax.random.key(0), x)["params"]
    kernel = params["reduce"]["kernel"].reshape(r, r, 2, 2)
    coarse = nn.Conv(2, (r, r), r, "VALID").apply(
        {"params": {"kernel": kernel, "bias": params["reduce"]["bias"]}}, x
    )
    coarse = nn.LayerNorm(param_dtype=jnp.float64).apply({"params": params["LayerNorm_0"]}, coarse)
    q = x @ params["query"]["kernel"]
    k, v = coarse @ params["key"]["kernel"], coarse @ params["value"]["kernel"]
    weights = jax.nn.softmax(q.reshape(16, 2) @ k.reshape(4, 2).T / 2**0.5)
    expected = (weights @ v.reshape(4, 2)).reshape(1, 4, 4, 2) @ params["out"]["kernel"]
    np.testing.assert_allclose(ours.apply({"params": params}, x), expected, atol=1e-6)


# --- nets -----------------------------------------------------------------------------------------


def count(net, size=64):
    variables = jax.eval_shape(
        lambda: net.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False)
    )
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def segnet_count(channels, width, depth, *, biases=False):
    """Counts by hand: a convolution has 9 c_in c_out weights, a BatchNorm two per channel."""
    blocks = [(2, 1), (2, 2), (3, 4), (3, 8), (3, 8)][:depth]
    plan = [width * factor for number, factor in blocks for _ in range(number)]
    # The encoder, and the decoder but for its last convolution.
    layers = [*pairwise([3, *plan]), *pairwise(plan[::-1])]
    return sum((9 * i + 2 + biases) * o for i, o in layers) + 9 * width * channels + channels


def test_segnet_parameter_count():
    assert count(SegNet(channels=1)) == 29_435_649 == segnet_count(1, 64, 5)
    assert round(segnet_count(12, 64, 5, biases=True) / 1e6, 2) == 29.45
    for channels, width, depth in ((2, 16, 4), (3, 5, 1)):
        net = SegNet(channels=channels, width=width, depth=depth)
        assert count(net) == segnet_count(channels, width, depth)


def segformer_count(channels, width, depth, *, key_bias=False):
    """Counts by hand, from the paper's section 3; a LayerNorm has two numbers a channel."""
    total, below = 0, 3
    for heads, r, side in zip((1, 2, 5, 8), (8, 4, 2, 1), (7, 3, 3, 3), strict=True):
        c = width * heads
        attention = 4 * c * c + (3 + key_bias) * c  # query, key, value, out
        if r > 1:
            attention += r * r * c * c + c + 2 * c
        mix_ffn = (c + 1) * 4 * c + (9 + 1) * 4 * c + (4 * c + 1) * c
        total += (side * side * below + 1) * c + 2 * c  # overlapping patches
        total += depth * (2 * c + attention + 2 * c + mix_ffn) + 2 * c
        below = c
    d = 8 * width
    decoder = sum((width * h + 1) * d for h in (1, 2, 5, 8)) + 4 * d * d + 2 * d
    return total + decoder + (d + 1) * channels


def test_segformer_parameter_count():
    assert count(SegFormer(channels=1)) == 3_713_377 == segformer_count(1, 32, 2)
    # The paper has 3.8 million for ADE20K's 150 classes, 0.4 of them in the decoder.
    assert segformer_count(150, 32, 2, key_bias=True) == 3_752_694
    assert count(SegFormer(channels=2, width=3, depth=1)) == segformer_count(2, 3, 1)


def model(name, *, head="sigmoid", width=2, depth=1, precision="highest", **encoder):
    return make_model(
        name=name, head=head, head_iterations=1, head_kind="anisotropic",
        width=width, depth=depth, momentum=0.9, dtype="float32", precision=precision, **encoder,
    )  # fmt: skip


def shapes(name, head, size):
    """The shapes of logits and probabilities."""
    net, made = model(name, head=head)

    def outputs():
        x = jnp.zeros((2, *size, 3))
        logits, _ = net.init_with_output(jax.random.key(0), x, train=False)
        return logits, made.probabilities(logits, jnp.float32(0.1))

    return [x.shape for x in jax.eval_shape(outputs)]


@pytest.mark.parametrize(
    "name, size",
    [
        *(("segnet", size) for size in ((8, 8), (25, 7), (1, 3))),
        *(("segformer", size) for size in ((100, 100), (33, 9))),
    ],
)
def test_any_size(name, size):
    assert shapes(name, "sigmoid", size) == [(2, *size, 1), (2, *size, 1)]


@pytest.mark.parametrize("name", ["unet", "segnet", "segformer"])
def test_what_is_no_number_stays_none(name):
    """Images that are none are marked by NaN, which no pooling may lose."""
    net = model(name)[0]
    image = jnp.zeros((1, 16, 16, 3))
    variables = net.init(jax.random.key(0), image, train=False)
    assert jnp.isnan(net.apply(variables, image * jnp.nan, train=False)).all()


def test_any_head():
    for head in ("softmax", "tv_softmax"):
        for name in ("segnet", "segformer"):
            assert shapes(name, head, (16, 16)) == [(2, 16, 16, 2), (2, 16, 16, 1)]


def test_bfloat16_is_inside_only():
    for name in ("segnet", "segformer"):
        net = model(name)[0].clone(dtype="bfloat16")
        logits, variables = jax.eval_shape(
            lambda net=net: net.init_with_output(
                jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=True
            )
        )
        assert logits.dtype == jnp.float32
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))


def test_a_segnet_deeper_than_vgg16_is_refused():
    with pytest.raises(UserError, match=r"model\.depth=6"):
        count(model("segnet", depth=6)[0])


def batch(seed, *, n=4, size=16, dtype=jnp.float32):
    """Bright squares on noise."""
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((n, size // 8, size // 8, 1)) < 0.4, np.ones((1, 8, 8, 1)))
    image = 0.4 * mask + 0.5 * rng.random((n, size, size, 3))
    return Batch(jnp.asarray(image, dtype), jnp.asarray(mask, jnp.uint8))


def bilevel(name, optimizer, *, width=2, dtype=jnp.float32):
    net, head = model(name, width=width)
    net = net.clone(dtype=None)  # that of the images
    regularizer = steps.Regularizer("loss", "anisotropic", "sum", "log")
    problem = steps.make_problem(net, head, optimizer, regularizer)
    variables = initial(net, dtype)
    hyper = jnp.asarray(-7.0, dtype)
    model_state = {"batch_stats": variables.get("batch_stats", {})}
    state = states.create(problem, variables["params"], model_state, hyper, None, optax.sgd(1.0))
    return problem, regularizer, state


@pytest.fixture
def two_stages(monkeypatch):
    """Two of SegFormer's four stages, to compile the half."""
    for field in ("HEADS", "REDUCTIONS", "PATCHES"):
        monkeypatch.setattr(segformer, field, getattr(segformer, field)[:2])


@pytest.mark.parametrize("name, rate, width", [("segnet", 0.03, 4), ("segformer", 0.01, 4)])
def test_it_learns(two_stages, name, rate, width):
    problem, regularizer, state = bilevel(name, hypergrad.adam(rate), width=width)
    step = jax.jit(steps.plain_step(problem, regularizer), compiler_options=HASTY)
    data, losses = batch(0), []
    for _ in range(25):
        state, metrics = step(state, [data])
        losses.append(float(metrics["bce"]))
    assert losses[-1] < 0.6 * losses[0], losses


def config_of(name, **changes):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.update_from_flattened_dict(changes)
    return config


def work_of(config, tiles):
    """The functions of a run on these tiles, and the arguments of its steps after the state."""
    config.data.directory = str(tiles)
    splits = open_section(config.data)
    setup = make_setup(config, (16, 16))
    return setup, feeds.dispatches(config, setup, splits, 0)


@pytest.mark.parametrize("name", ["segnet", "segformer"])
def test_a_step_of_its_config_gives_the_state_of_the_next(tiles, name):
    """Traced only: to compile all blocks takes minutes."""
    setup, work = work_of(config := config_of(name), tiles)
    state = state_shapes(config)
    after, metrics = jax.eval_shape(setup.plain, state, *next(work).arguments)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (one.shape, one.dtype) == (two.shape, two.dtype)
    assert metrics["loss"].shape == metrics["iou"].shape == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segnet", "segformer"])
def test_its_config_takes_steps_on_tiles(tiles, name, monkeypatch):
    """All its blocks, its optimiser, schedule and augmentation; the net is narrow."""
    monkeypatch.setattr(parallel, "_CPU_OPTIONS", HASTY)
    config = config_of(name, **{
        "model.width": 2, "train.batch_size": 4, "train.steps": 3, "schedule.warmup": 1,
    })  # fmt: skip
    setup, work = work_of(config, tiles)
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state_shapes(config))
    start = initial(make_model(**config.model)[0], jnp.float32)["params"]
    params = jax.tree.map(jnp.copy, start)  # a step takes its state's memory
    state = state._replace(inner=state.inner._replace(params=params))
    for dispatch in work:
        state, metrics = setup.plain(state, *dispatch.arguments)
        assert 0 < float(metrics["loss"]) < 5 and 0 <= float(metrics["iou"]) <= 1
    assert int(state.step) == 3
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), start, state.inner.params)
    # Attention to a single key, all that tiles of 16 pixels leave, does not depend on the query.
    paths = jax.tree_util.tree_leaves_with_path(moved)
    still = {jax.tree_util.keystr(path[-2:]) for path, has_moved in paths if not has_moved}
    assert still <= {"['query']['bias']"}, still


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segnet", "segformer"])
def test_it_beats_the_baselines_of_the_embedded_set(tmp_path_factory, name):
    base = tmp_path_factory.getbasetemp()  # both nets' tiles are drawn once
    config = config_of(name, **{
        "model.width": 8, "train.steps": 240, "schedule.warmup": 20, "evaluation.every": 240,
        "checkpoint.every": 240, "data.cache": str(base / "embedded"),
    })  # fmt: skip
    summary = loop.run(config, base / f"embedded-{name}")
    least = max(v for k, v in summary["test_baselines"].items() if k.endswith("_pooled"))
    assert summary["test_pooled_iou"] > least + 0.1, summary


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segnet", "segformer"])
def test_exact_hypergradient_is_the_finite_difference(x64, two_stages, name):
    problem, _, state = bilevel(name, hypergrad.adam(1e-3), dtype=jnp.float64)
    data = [batch(seed, n=2, dtype=jnp.float64) for seed in range(4)]

    @jax.jit
    def estimate(inner, hyper, train):
        return hypergrad.exact()(problem, inner, hyper, [train], data[3])

    inner = state.inner
    for train in data[:2]:  # so that Adam's moments are at work
        inner = estimate(inner, state.hyper, train).state
    exact = estimate(inner, state.hyper, data[2]).gradient
    assert exact.dtype == jnp.float64
    h = 1e-3
    near, far = (
        estimate(inner, state.hyper + k * h, data[2]).outer_loss
        - estimate(inner, state.hyper - k * h, data[2]).outer_loss
        for k in (1, 2)
    )
    np.testing.assert_allclose(exact, (8 * near - far) / (12 * h), rtol=1e-5)
    assert exact != 0
