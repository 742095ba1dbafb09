"""Which products hardware may round to fewer bits: the nets' own, as a field says, no others."""

import re
from collections import Counter

import devices  # noqa: F401, has a net of its own
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from encoders import tiny as tiny
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr
from nets import initial
from programs import SHARED
from test_nets import batch, model
from test_nets import two_stages as two_stages

from configs import base
from tvjax import denoise_tv, fields, hypergrad, total_variation, tv_softmax
from tvjax.data import builder, pipeline
from tvjax.data.sets import open_section
from tvjax.errors import UserError
from tvjax.hypergrad import SCANNED
from tvjax.models.layers import BatchNorm
from tvjax.training import state as states
from tvjax.training import steps
from tvjax.types import Batch

REAL = SHARED / "data" / "crowdai" / "train"
OWN = re.compile(r"/(Conv|Upsample|Dense|Attention|MixFFN)_\d+")
"""The modules whose products are the net's own, as they are named in a trace."""


def fast(function, *args):
    """`{where: how often}` of the products and convolutions that are not at HIGHEST."""
    found = Counter()

    def walk(value, path):
        if isinstance(value, ClosedJaxpr):
            walk(value.jaxpr, path)
        elif isinstance(value, Jaxpr):
            for equation in value.eqns:
                place = f"{path}/{equation.source_info.name_stack}"
                exact = equation.params.get("precision") == 2 * (lax.Precision.HIGHEST,)
                if equation.primitive.name in ("dot_general", "conv_general_dilated") and not exact:
                    found[place] += 1
                walk(list(equation.params.values()), place)
        elif isinstance(value, list | tuple):
            for part in value:
                walk(part, path)

    walk(jax.make_jaxpr(function)(*args), "")
    return found


def setting(estimator=None, *, name="unet", head="sigmoid", precision="highest", **encoder):
    """`(net, head, regularizer, problem, state)`."""
    net, made = model(name, head=head, precision=precision, **encoder)
    place = "head" if head == "tv_softmax" else "loss"
    regularizer = steps.Regularizer(place, "anisotropic", "sum", "log")
    problem = steps.make_problem(net, made, hypergrad.adam(1e-3), regularizer)
    variables, alpha = initial(net, jnp.float32), jnp.float32(-3)
    model_state = {"batch_stats": variables.get("batch_stats", {})}
    args = problem, variables["params"], model_state, alpha, estimator
    # What an online estimator carries is traced as it is made, not computed.
    state = jax.eval_shape(lambda: states.create(*args, optax.sgd(1.0)))
    return net, made, regularizer, problem, state


SINGLE = {
    "exact": hypergrad.exact(),
    "exact in reverse": hypergrad.exact(mode="reverse"),
    "sgd_formula": hypergrad.sgd_formula(0.1),
    "paper": hypergrad.paper(0.1),
    "preconditioned": hypergrad.preconditioned(0.1),
    "darts": hypergrad.darts(0.1),
    "training_loss": hypergrad.training_loss(),
    "forward_online": hypergrad.forward_online(),
    "reverse": hypergrad.reverse(2, loop=SCANNED),
    "forward": hypergrad.forward(2, loop=SCANNED),
    "finite_difference": hypergrad.finite_difference(2, loop=SCANNED),
    "cg": hypergrad.cg(3, loop=SCANNED),
    "neumann": hypergrad.neumann(3, 0.1, loop=SCANNED),
    "nystrom": hypergrad.nystrom(2, 0.1, loop=SCANNED),
    "scaled_identity": hypergrad.scaled_identity(0.1, loop=SCANNED),
}


@pytest.mark.parametrize("name", SINGLE)
def test_an_estimator_rounds_no_product(name):
    estimator = SINGLE[name]
    # A net that is traced in a moment, and one U-Net.
    net = "unet" if name == "exact" else "pixels"
    _, _, regularizer, problem, state = setting(estimator, name=net)
    step = steps.bilevel_step(problem, regularizer, estimator, optax.sgd(1.0))
    assert not fast(step, state, [batch(i) for i in range(estimator.steps)], batch(9))


def test_reversible_learning_rounds_no_product():
    def loss(params, hyper, data):
        return hyper * jnp.sum(params**2)  # a net's running statistics cannot be run backwards

    optimizer = optax.sgd(0.1, momentum=0.9)
    problem = hypergrad.Bilevel(loss, lambda params, hyper, data: jnp.sum(params), optimizer)
    estimator = hypergrad.reversible(2, 0.1, 0.9, loop=SCANNED)
    data = [jnp.zeros(1), jnp.zeros(1)]
    assert not fast(
        lambda x: estimator(problem, problem.init(x), jnp.float32(0.1), data, data[0]).gradient,
        jnp.ones(3),
    )


@pytest.mark.usefixtures("two_stages", "tiny")
@pytest.mark.parametrize("name, head, encoder", [
    ("unet", "sigmoid", None), ("unet", "softmax", None), ("unet", "tv_softmax", None),
    ("unet", "sigmoid", "tiny"), ("segnet", "sigmoid", None), ("segformer", "sigmoid", None),
])  # fmt: skip
def test_a_step_rounds_the_products_of_its_net_alone(name, head, encoder):
    """The net's products are rounded as the field says."""
    net, _, _, _, state = setting(name=name, head=head, encoder=encoder)
    variables = {"params": state.inner.params, **state.inner.model_state}
    images = batch(0).image
    assert not fast(lambda v: net.apply(v, images, train=True, mutable=["batch_stats"]), variables)
    _, _, regularizer, problem, state = setting(
        name=name, head=head, encoder=encoder, precision="default"
    )
    found = fast(steps.plain_step(problem, regularizer), state, [batch(0)])
    assert found and all(OWN.search(place) for place in found), found


@pytest.mark.parametrize("denoise", [None, 0.1])
def test_an_evaluation_rounds_no_product(denoise):
    net, head, regularizer, _, state = setting()
    evaluation = steps.evaluation_step(net, head, regularizer)
    assert not fast(evaluation, state, denoise, batch(0))


def test_total_variation_and_its_solvers_round_no_product():
    images, logits = jnp.zeros((2, 8, 8, 1)), jnp.zeros((2, 8, 8, 2))

    def slopes(function):
        return jax.grad(lambda x, lam: jnp.sum(function(x, lam)), argnums=(0, 1))

    for kind in ("anisotropic", "isotropic", "huber"):
        tv = slopes(lambda x, lam, kind=kind: lam * total_variation(x, kind=kind))
        assert not fast(tv, images, 0.1)
    for kind in ("anisotropic", "isotropic"):
        for method in ("fista", "primal_dual"):
            options = {"kind": kind, "method": method}
            rof = slopes(lambda x, lam, options=options: denoise_tv(x, lam, **options).image)
            assert not fast(rof, images, 0.1)
        for iterations in (2, None):
            options = {"kind": kind, "num_iterations": iterations}
            layer = slopes(lambda x, lam, options=options: tv_softmax(x, lam, **options))
            assert not fast(layer, logits, 0.1)


def test_a_walk_finds_what_is_rounded():
    ones = jnp.ones((2, 2))
    hidden = jax.jit(lambda x: lax.fori_loop(0, 3, lambda _, y: y @ x, x))
    assert sum(fast(hidden, ones).values()) == 1
    assert not fast(lambda x: BatchNorm().init_with_output(jax.random.key(0), x, train=True), ones)


def test_an_unknown_precision_is_refused():
    config = base.get_config()
    config.model.precision = "tf32"
    with pytest.raises(UserError, match=r"model.precision='tf32'.*highest, high"):
        fields.check(config)


def real_tiles(folder):
    """16 tiles to train on and 4 to validate on, of 100 pixels, in float32."""
    builder.build(REAL / "annotation.json", REAL / "images", folder, size=100, progress=False)
    splits = open_section(base.get_config().data, directory=str(folder))
    held = {name: pipeline.resident(split) for name, split in splits.items()}

    def batch(*names):
        images, masks = zip(*(held[name] for name in names), strict=True)
        return Batch(jnp.float32(np.concatenate(images) / 255), jnp.asarray(np.concatenate(masks)))

    return batch("train"), batch("val", "test")


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="needs shared/data/crowdai beside the checkout")
def test_the_hypergradient_in_float32_is_that_of_float64(tmp_path):
    """The states are of one training, each in float32 and in float64: 5e-4 apart by the median.

    Now and then rounding decides whether a unit is above 0: then float64 too moves by up to 8e-4
    when its parameters are rounded once, and float32 has been 2e-3 off.
    """
    train, val = real_tiles(tmp_path / "tiles")
    net, head = model("unet", width=8, depth=2)
    regularizer = steps.Regularizer("loss", "anisotropic", "sum", "log")
    problem = steps.make_problem(net.clone(dtype=None), head, hypergrad.adam(2e-3), regularizer)
    variables = jax.jit(lambda: net.init(jax.random.key(0), train.image[:1], train=False))()
    alpha = jnp.log(jnp.float32(0.1 / train.mask.size))  # TV weighs 0.1 per pixel
    model_state = {"batch_stats": variables["batch_stats"]}
    state = problem.init(variables["params"], model_state)
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    step = jax.jit(problem.inner_step, compiler_options=options)
    exact = jax.jit(
        lambda *args: hypergrad.exact()(problem, *args).gradient, compiler_options=options
    )

    def wide(x):
        return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    errors = []
    for count in range(1, 41):
        state, _ = step(state, alpha, train)
        if count in (1, 2, 3, 4, 10, 20, 30, 40):
            args = state, alpha, [train], val
            found = exact(*args)
            with jax.enable_x64(True):
                expected = exact(*jax.tree.map(wide, args))
            assert (found.dtype, expected.dtype) == (jnp.float32, jnp.float64)
            errors.append(abs(float(found) / float(expected) - 1))
    assert np.median(errors) < 5e-4, errors
