import functools

import cvxpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convex import minimise, polish, variation
from jax.test_util import check_grads

from tvjax.tv import dual, softmax
from tvjax.tv.rof import denoise_tv
from tvjax.tv.softmax import tv_softmax
from tvjax.tv.variation import total_variation

KINDS = ("anisotropic", "isotropic")
EXACT = {"num_iterations": None, "tolerance": 1e-18, "max_iterations": 20_000}


def random_logits(*shape, seed=0):
    return 2 * np.random.default_rng(seed).standard_normal(shape)


def loop_layer(o, lam, steps, step_size, kind):
    """The K-step layer in numpy, one class, row and column at a time."""
    h, w, c = o.shape
    y, x = np.zeros((h, w, c)), np.zeros((h, w, c))

    def probabilities():
        s = np.zeros((h, w, c))
        for i in range(h):
            for j in range(w):
                s[i, j] -= y[i, j] + x[i, j]
                s[i, j] += (y[i - 1, j] if i else 0) + (x[i, j - 1] if j else 0)
        e = np.exp(o - lam * s)
        return e / e.sum(-1, keepdims=True)

    a = probabilities()
    for _ in range(steps):
        for i in range(h):
            for j in range(w):
                if i + 1 < h:
                    y[i, j] += step_size * (a[i + 1, j] - a[i, j])
                if j + 1 < w:
                    x[i, j] += step_size * (a[i, j + 1] - a[i, j])
        if kind == "anisotropic":
            y, x = y.clip(-1, 1), x.clip(-1, 1)
        else:
            size = np.maximum(1, np.sqrt(y**2 + x**2))
            y, x = y / size, x / size
        a = probabilities()
    return a


def convex_solution(o, lam, kind):
    h, w, classes = o.shape
    a = [cvxpy.Variable((h, w)) for _ in range(classes)]
    cost = 0
    for a_c, o_c in zip(a, np.moveaxis(o, -1, 0), strict=True):
        cost += lam * variation(a_c, kind)
        cost -= cvxpy.sum(cvxpy.multiply(o_c, a_c)) + cvxpy.sum(cvxpy.entr(a_c))
    minimise(cost, [sum(a) == 1], tolerance=1e-14)
    return np.stack([a_c.value for a_c in a], axis=-1)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")  # it stops at rounding
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 3])
def test_converged_agrees_with_convex_solver(x64, kind, classes):
    o = random_logits(6, 5, classes)
    for lam in (0.1, 0.4):
        got = tv_softmax(o, lam, kind=kind, **EXACT)

        def energy(a, lam=lam):
            return jnp.sum(a * (jnp.log(a) - o)) + lam * total_variation(a, kind=kind)

        convex = convex_solution(o, lam, kind)  # alone good to 1.3e-5
        convex = polish(energy, convex, kind, threshold=1e-4, sums_to_one=True)
        np.testing.assert_allclose(got, convex, rtol=0, atol=1e-7)


def test_two_classes_are_rof_of_the_difference(x64):
    o = jnp.asarray(random_logits(2, 12, 11, 2))
    lam = jnp.array([0.15, 0.6])
    v = softmax._fista(o, lam, 1e-18, kind="anisotropic", max_iterations=20_000)
    by_fista = jax.nn.softmax(o - dual.adjoint(v), axis=-1)  # without ROF
    z = denoise_tv(o[..., 1:] - o[..., :1], 2 * lam, tolerance=1e-18, max_iterations=20_000).image
    np.testing.assert_allclose(by_fista[..., 1:], jax.nn.sigmoid(z), rtol=0, atol=1e-10)
    got = tv_softmax(o, lam, **EXACT)
    np.testing.assert_allclose(got, by_fista, rtol=0, atol=1e-10)
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 3])
def test_steps_agree_with_a_numpy_loop(x64, kind, classes):
    o = random_logits(6, 5, classes)
    for steps in (0, 1, 2, 40):
        for step_size in (None, 0.3):
            got = tv_softmax(o, 0.2, num_iterations=steps, step_size=step_size, kind=kind)
            expected = loop_layer(o, 0.2, steps, step_size or 1 / 0.8, kind)
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_spike(x64):
    spike = jnp.zeros((9, 9, 2)).at[4, 4, 1].set(4.0)
    got = tv_softmax(spike, 0.25, **EXACT)[4, 4, 1]
    assert float(got) == pytest.approx(0.88079708, abs=1e-8)
    long = tv_softmax(spike, 0.25, num_iterations=3000)[4, 4, 1]
    assert float(long) == pytest.approx(0.88079708, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 100, None])
def test_the_papers_lambda_is_inert(x64, steps):
    o = random_logits(2, 16, 16, 2)
    moved = tv_softmax(o, 1e-6, num_iterations=steps, tolerance=1e-16) - jax.nn.softmax(o)
    assert 1e-7 < jnp.abs(moved).max() <= 2e-6


@pytest.mark.parametrize("steps", [1, None])
@pytest.mark.parametrize("classes", [2, 3])
def test_what_is_no_weight_is_refused_or_nan(classes, steps):
    o = random_logits(2, 5, 4, classes)
    layer = functools.partial(tv_softmax, num_iterations=steps)
    for lam in (-0.3, np.float32(-0.3), jnp.array([0.1, -0.3]), np.float64("nan"), jnp.inf):
        with pytest.raises(ValueError, match=r"lam must be .*; got (-0\.3|nan|inf)"):
            layer(o, lam)
    a = jax.jit(layer)(o, jnp.array([0.1, -0.3]))
    assert jnp.isfinite(a[0]).all() and jnp.isnan(a[1]).all()


@pytest.mark.parametrize("steps, classes", [(3, 3), (None, 3), (None, 2)])
def test_only_differences_of_classes_matter(steps, classes):
    o = jnp.round(256 * random_logits(6, 5, classes).astype(jnp.float32)) / 256
    layer = functools.partial(tv_softmax, lam=0.1, num_iterations=steps)
    np.testing.assert_allclose(layer(o + 2.0**13), layer(o), atol=1e-6)


@pytest.mark.parametrize(
    "steps, classes, kind",
    [
        (1, 2, "isotropic"), (1, 3, "anisotropic"), (6, 2, "anisotropic"),
        (None, 2, "anisotropic"), (None, 3, "isotropic"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (1, 2, "anisotropic"), (1, 3, "isotropic"),
                (6, 2, "isotropic"), (6, 3, "anisotropic"), (6, 3, "isotropic"),
                (None, 2, "isotropic"), (None, 3, "anisotropic"),
            )
        ),
    ],
)  # fmt: skip
def test_derivatives_agree_with_central_differences(x64, steps, classes, kind):
    o = jnp.asarray(random_logits(2, 5, 4, classes))
    w = random_logits(2, 5, 4, classes, seed=1)
    lam = jnp.array([0.1, 0.3])
    options = {**EXACT, "backward": "implicit"} if steps is None else {"num_iterations": steps}

    @jax.jit
    def loss(o, lam):
        return jnp.sum(w * tv_softmax(o, lam, kind=kind, **options))

    check_grads(loss, (o, lam), 1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-6)


@pytest.mark.parametrize("kind", ["anisotropic", pytest.param("isotropic", marks=pytest.mark.slow)])
@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.slow), 3, None])
def test_lambda_zero_is_softmax_with_its_derivatives(x64, kind, steps):
    o = jnp.asarray(random_logits(5, 4, 3))
    w = random_logits(5, 4, 3, seed=1)

    def loss(o, lam):
        return jnp.sum(w * tv_softmax(o, lam, num_iterations=steps, kind=kind, tolerance=1e-16))

    np.testing.assert_allclose(tv_softmax(o, 0, num_iterations=steps), jax.nn.softmax(o))
    by_o, by_lam = jax.jit(jax.grad(loss, argnums=(0, 1)))(o, 0.0)
    np.testing.assert_allclose(by_o, jax.grad(lambda o: jnp.sum(w * jax.nn.softmax(o)))(o))
    one_sided = (loss(o, 1e-7) - loss(o, 0.0)) / 1e-7
    assert float(by_lam) == pytest.approx(float(one_sided), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 3, None])
@pytest.mark.parametrize("backward", ["unroll", "frozen"])
def test_everything_is_finite_at_ties(kind, steps, backward):
    @jax.jit
    def derivatives(o, lam):
        def loss(o, lam):
            a = tv_softmax(o, lam, num_iterations=steps, kind=kind, backward=backward)
            return jnp.sum(jnp.square(a))

        return jax.value_and_grad(loss, argnums=(0, 1))(o, lam)

    for o in (np.zeros((4, 4, 2)), 100 * np.eye(4)[..., None] * [1, -1], np.full((4, 4, 2), -50.0)):
        for lam in (0.0, 1e-30, 1e-6, 0.5, 100.0):
            for leaf in jax.tree.leaves(derivatives(jnp.float32(o), jnp.float32(lam))):
                assert jnp.isfinite(leaf).all()


@pytest.mark.parametrize("kind", ["anisotropic", pytest.param("isotropic", marks=pytest.mark.slow)])
def test_frozen_is_not_the_gradient(x64, kind):
    o = jnp.asarray(random_logits(6, 5, 2))
    w = random_logits(6, 5, 2, seed=1)

    def gradient(backward, steps):
        def loss(o, lam):
            a = tv_softmax(o, lam, num_iterations=steps, backward=backward, kind=kind)
            return jnp.sum(w * a)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(o, 0.3)

    for steps, exact in ((3, "unroll"), (None, "implicit")):
        (value, true), (same, frozen) = gradient(exact, steps), gradient("frozen", steps)
        assert float(value) == pytest.approx(float(same), abs=1e-2)
        assert jnp.linalg.norm(true[0] - frozen[0]) > 0.05 * jnp.linalg.norm(true[0])
        assert abs(true[1] - frozen[1]) > 0.01 * abs(true[1])


@pytest.mark.parametrize("steps", [2, None])
@pytest.mark.parametrize("kind", ["anisotropic", pytest.param("isotropic", marks=pytest.mark.slow)])
def test_vmap_jit_and_shapes_agree(x64, kind, steps):
    o = random_logits(2, 2, 5, 4, 3)
    lam = jnp.array([0.1, 0.3])

    def layer(o, lam):
        return tv_softmax(o, lam, num_iterations=steps, kind=kind)

    whole = layer(o, lam[:, None])
    assert whole.shape == o.shape
    np.testing.assert_allclose(jax.jit(jax.vmap(layer))(o, lam), whole, atol=1e-14)
    assert tv_softmax(jnp.float16(o), 0.1).dtype == jnp.float32
    for empty in (o[:0], o[:, :0]):
        assert layer(empty, 0.1).shape == empty.shape


def test_errors_name_the_value():
    o = jnp.zeros((4, 4, 2))
    for match, arguments, options in (
        (r"\(4, 4\)", (o[..., 0], 0.1), {}),
        (r"-0\.5", (o, -0.5), {}),
        ("'huber'", (o, 0.1), {"kind": "huber"}),
        ("'exact'", (o, 0.1), {"backward": "exact"}),
        ("-1", (o, 0.1), {"num_iterations": -1}),
        (r"num_iterations.*1\.5", (o, 0.1), {"num_iterations": 1.5}),
        ("step_size.*0", (o, 0.1), {"step_size": 0.0}),
        ("step_size.*-1", (o, 0.1), {"step_size": np.float32(-1)}),
        ("real.*complex64", (o * 1j, 0.1), {}),
        ("class", (o[..., :0], 0.1), {}),
        ("step_size.*0.1", (o, 0.1), {"num_iterations": None, "step_size": 0.1}),
        ("implicit", (o, 0.1), {"backward": "implicit"}),
    ):
        with pytest.raises(ValueError, match=match):
            tv_softmax(*arguments, **options)
