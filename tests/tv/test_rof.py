import functools

import cvxpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from convex import minimise, polish, variation
from jax.test_util import check_grads
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from tvjax.tv import dual, solvers
from tvjax.tv.rof import SOLVERS, _denoise, denoise_tv
from tvjax.tv.variation import total_variation

KINDS = ("anisotropic", "isotropic")
EXACT = {"tolerance": 1e-18, "max_iterations": 20_000}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).random(shape)


def crop(n=20):
    return skimage.data.camera()[100 : 100 + 4 * n : 4, 200 : 200 + 4 * n : 4] / 255


def objective(u, f, lam, kind):
    return 0.5 * jnp.sum((u - f) ** 2, axis=(-3, -2, -1)) + lam * total_variation(u, kind=kind)


def convex_solution(f, lam, kind):
    """ROF of one `[H, W]` image by an interior point method."""
    u = cvxpy.Variable(f.shape)
    cost = 0.5 * cvxpy.sum_squares(u - f) + lam * variation(u, kind)
    minimise(cost, tolerance=1e-13)
    return u.value


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")  # it stops at rounding
@pytest.mark.parametrize("lam", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_convex_solver(x64, kind, lam):
    images = np.stack([noise(20, 20), crop()])
    tolerance = 1e-13 if kind == "anisotropic" else 1e-8
    got = denoise_tv(images[..., None], lam, kind=kind, tolerance=tolerance, max_iterations=50_000)
    limit = 1e-8 if kind == "anisotropic" else 1e-5
    for f, u, gap in zip(images, got.image[..., 0], got.gap, strict=True):
        assert gap <= tolerance
        convex = convex_solution(f, lam, kind)[..., None]
        if kind == "anisotropic":  # the solver alone is good to 1e-6 where regions nearly meet

            def energy(u, f=f[..., None]):
                return objective(u, f, lam, kind)

            convex = polish(energy, convex, kind, threshold=1e-5)
        np.testing.assert_allclose(u, convex[..., 0], rtol=0, atol=limit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["fista", "primal_dual", "chambolle"])
def test_gap_certifies_every_method(x64, kind, method):
    f = np.stack([noise(16, 16, 2), noise(16, 16, 2, seed=1) > 0.5])
    lam = jnp.array([0.1, 0.3])
    exact = denoise_tv(f, lam, kind=kind, **EXACT).image
    for tolerance in (1e-1, 1e-2, 1e-3) if method == "chambolle" else (1e-1, 1e-3, 1e-6):
        got = denoise_tv(f, lam, kind=kind, method=method, tolerance=tolerance)
        assert (got.gap <= tolerance).all() and (got.gap >= 0).all()
        assert (got.iterations < 10_000).all()
        excess = objective(got.image, f, lam, kind) - objective(exact, f, lam, kind)
        assert (excess >= -1e-12).all() and (excess <= got.gap).all()
        distance = jnp.sqrt(jnp.sum((got.image - exact) ** 2, axis=(-3, -2, -1)))
        assert (distance <= jnp.sqrt(2 * got.gap)).all()


@pytest.mark.parametrize("kind", [pytest.param("anisotropic", marks=pytest.mark.slow), "isotropic"])
def test_lbfgs_smooths_and_says_so(x64, kind):
    f = noise(2, 8, 8, 1)
    got = denoise_tv(f, 0.1, kind=kind, method="lbfgs", max_iterations=300)
    exact = denoise_tv(f, 0.1, kind=kind, **EXACT).image
    distance = jnp.sqrt(jnp.sum((got.image - exact) ** 2, axis=(-3, -2, -1)))
    assert (1e-6 < got.gap).all() and (got.gap < 1e-3 * 0.1 * 2 * 64).all()
    assert (distance <= jnp.sqrt(2 * got.gap)).all()


def min_cut(unary, lam):
    """The least minimiser S of `sum_S unary + lam Per(S)`, all integers, by maximum flow."""
    h, w = unary.shape
    pixel = np.arange(h * w).reshape(h, w)
    source, sink = h * w, h * w + 1
    a = np.concatenate([pixel[1:].ravel(), pixel[:, 1:].ravel()])
    b = np.concatenate([pixel[:-1].ravel(), pixel[:, :-1].ravel()])
    flat = unary.ravel()
    rows = np.concatenate([a, b, np.full((flat < 0).sum(), source), pixel.ravel()[flat > 0]])
    columns = np.concatenate([b, a, pixel.ravel()[flat < 0], np.full((flat > 0).sum(), sink)])
    capacity = np.concatenate([np.full(2 * a.size, lam), -flat[flat < 0], flat[flat > 0]])
    graph = coo_matrix((capacity.astype(np.int32), (rows, columns)), shape=(h * w + 2,) * 2).tocsr()
    residual = graph - maximum_flow(graph, source, sink).flow
    residual.data[residual.data < 0] = 0
    residual.eliminate_zeros()
    reached = np.zeros(h * w + 2, bool)
    reached[breadth_first_order(residual, source, return_predecessors=False)] = True
    return reached[: h * w].reshape(h, w)


@pytest.mark.parametrize("lam", [50, 200, 500])
def test_thresholded_masks_are_min_cuts(x64, lam):
    for image in (noise(24, 24), crop(24), 0.3 * noise(24, 24, seed=1) + 0.5 * crop(24)):
        whole = 4 * np.round(1000 * image).astype(int) + 1  # f in steps of 1 / 4000, never 1/2
        u = denoise_tv(whole[..., None] / 4000, lam / 1000, tolerance=1e-14).image[..., 0]
        assert np.abs(u - 0.5).min() > 1e-9  # so that the cut is unique
        cut = min_cut(2000 - whole, 4 * lam)
        assert lam > 50 or 0 < cut.mean() < 1
        np.testing.assert_array_equal(u > 0.5, cut)


@pytest.mark.parametrize("kind", KINDS)
def test_properties(x64, kind):
    f, g = noise(2, 12, 10, 2), noise(2, 12, 10, 2, seed=1)
    lam = jnp.array([0.1, 0.4])

    @jax.jit
    def solve(f, lam):
        return denoise_tv(f, lam, kind=kind, **EXACT).image

    u = solve(f, lam)
    same = {"rtol": 0, "atol": 1e-7 if kind == "isotropic" else 1e-9}
    np.testing.assert_allclose(u.mean((1, 2)), f.mean((1, 2)), **same)
    assert u.min() >= f.min() and u.max() <= f.max()
    assert jnp.linalg.norm(u - solve(g, lam)) <= np.linalg.norm(f - g)
    np.testing.assert_allclose(solve(f + 3.0, lam), u + 3.0, **same)
    np.testing.assert_allclose(solve(2.5 * f, 2.5 * lam), 2.5 * u, **same)
    np.testing.assert_allclose(solve(f.swapaxes(1, 2), lam), u.swapaxes(1, 2), **same)
    np.testing.assert_array_equal(solve(f, 0 * lam), f)
    flat = np.broadcast_to(f.mean((1, 2), keepdims=True), f.shape)
    np.testing.assert_allclose(solve(f, 100 + lam), flat, **same)


def test_spikes(x64):
    spike = jnp.zeros((9, 9, 1)).at[4, 4].set(1.0)
    for lam in (0.05, 0.1):
        u = denoise_tv(spike, lam, **EXACT).image
        assert float(u[4, 4, 0]) == pytest.approx(1 - 4 * lam, abs=1e-12)
    # Isotropic: while its left and upper neighbours stay with the background, which takes it up.
    u = denoise_tv(spike, 0.01, kind="isotropic", **EXACT).image
    assert float(u[4, 4, 0]) == pytest.approx(1 - (2 + 2**0.5) * 0.01, abs=1e-8)


def varied_images(n, size):
    """Noise, constants, masks, spikes, steps, offsets and tiny and large values, float32."""
    rng = np.random.default_rng(0)
    f = rng.random((n, size, size, 1))
    f[1::7] = f[1::7, :1, :1]
    f[2::7] = f[2::7] > 0.5
    f[3::7] = f[3::7] > 0.97
    f[4::7] = (f[4::7] * 4).round() / 4
    f[5::7] += 10
    f[6::7] *= 10.0 ** rng.integers(-6, 3, (len(f[6::7]), 1, 1, 1))
    lam = 10.0 ** rng.uniform(-3, 0.5, n)
    lam[::11] = 0
    return f.astype(np.float32), lam.astype(np.float32)


@pytest.mark.parametrize("kind", ["anisotropic", pytest.param("isotropic", marks=pytest.mark.slow)])
def test_ten_thousand_images_in_float32_are_certified_or_say_so(kind):
    f, lam = varied_images(5000, 8)
    got = denoise_tv(f, lam, kind=kind)
    assert np.isfinite(got.image).all() and np.isfinite(got.gap).all()
    certified = got.gap <= 1e-6
    # What is not certified stopped at rounding: its gap is within a few units of float32.
    unit = np.finfo(np.float32).eps * lam * np.abs(f).sum((1, 2, 3))
    assert (certified | (got.gap <= dual.ROUNDING * unit)).all()
    assert certified.mean() > 0.5
    assert (got.gap >= 0).all()
    # The certificate is true, up to the same rounding.
    few = slice(None, None, 10)
    with jax.enable_x64(True):
        exact = denoise_tv(f[few].astype(np.float64), lam[few], kind=kind, tolerance=1e-9)
        exact = np.asarray(exact.image)
    distance = np.sqrt(np.square(np.asarray(got.image)[few] - exact).sum((1, 2, 3)))
    size = np.sqrt(np.square(f[few]).sum((1, 2, 3)))
    allowed = np.sqrt(2 * (np.asarray(got.gap)[few] + unit[few])) + 1e-6 * size + 5e-5
    assert (distance <= allowed).all()


def test_nan_stays_in_its_image():
    f = noise(3, 6, 6, 1)
    f[1, 2, 2] = np.nan
    got = denoise_tv(f.astype(np.float32), 0.1, tolerance=1e-4)
    assert not np.isfinite(got.gap[1])
    assert np.isfinite(got.image[::2]).all() and (got.gap[::2] <= 1e-4).all()


@pytest.mark.parametrize("slots", [1, 3])
def test_queue_gives_each_image_what_it_gets_alone(x64, monkeypatch, slots):
    _denoise.clear_cache()  # the number of slots is read while compiling
    f, lam = varied_images(8, 6)
    f = f.astype(np.float64)
    alone = [denoise_tv(x, w) for x, w in zip(f, lam, strict=True)]
    _denoise.clear_cache()
    monkeypatch.setitem(dual.SLOT_PIXELS, "cpu", slots * 36)
    together = denoise_tv(f, lam)
    _denoise.clear_cache()
    for i, one in enumerate(alone):
        assert together.iterations[i] == one.iterations
        np.testing.assert_allclose(together.image[i], one.image, atol=1e-14)
    assert len(set(np.asarray(together.iterations))) > 2


def test_finished_images_are_not_iterated(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    worked = []

    def step(state, data, lam):
        jax.debug.callback(lambda n: worked.append(int(n)), lam.shape[0])
        return state + 1

    def check(state, data, lam):
        return jnp.where(state >= data, 0.0, 1.0), state

    needs = np.full(16, 20.0, np.float32)
    needs[3] = 2000.0
    start, lam = jnp.zeros(16), jnp.ones(16)
    stop = {"rounding": 0 * lam, "tolerance": 0.5, "max_iterations": 10_000}
    state, certificate = dual.run(step, check, start, jnp.asarray(needs), lam, **stop)
    jax.effects_barrier()
    np.testing.assert_array_equal(state, needs)
    np.testing.assert_array_equal(certificate.iterations, needs)
    # Two slots: the first two images, and the slow one beside each of the others and then alone.
    assert sum(worked) == 2 * (20 + 2000)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_agree_with_central_differences(x64, kind):
    f, w = noise(2, 6, 5, 2), noise(2, 6, 5, 2, seed=1)

    @jax.jit
    def loss(f, lam):
        return jnp.sum(w * denoise_tv(f, lam, kind=kind, **EXACT).image ** 2)

    point = (jnp.asarray(f), jnp.array([0.1, 0.2]))
    check_grads(loss, point, 1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-6)


@pytest.mark.parametrize("kind", ["anisotropic", pytest.param("isotropic", marks=pytest.mark.slow)])
def test_second_derivative_in_lambda_agrees_with_central_differences(x64, kind):
    f, w = noise(2, 6, 5, 2), noise(2, 6, 5, 2, seed=1)

    def loss(lam):
        return jnp.sum(w * denoise_tv(f, lam, kind=kind, **EXACT).image ** 2)

    slope = jax.jit(jax.grad(loss))
    check_grads(slope, (jnp.array([0.1, 0.2]),), 1, ("fwd",), 1e-5, 1e-5, 1e-6)


def test_region_rule(x64):
    square = np.zeros((7, 7, 1))
    square[2:5, 2:5] = 1  # 3 x 3: boundary 12; background of 40 pixels
    f = jnp.asarray(square + 1e-3 * noise(7, 7, 1))

    def solve(f, lam):
        return denoise_tv(f, lam, **EXACT).image

    du = jax.jit(jax.jacfwd(solve, argnums=1))(f, 0.05)
    np.testing.assert_allclose(du, np.where(square, -12 / 9, 12 / 40), rtol=1e-12)
    gradient = jax.jit(jax.grad(lambda f: solve(f, 0.05)[3, 3, 0]))(f)
    np.testing.assert_allclose(gradient, square / 9, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_at_ties_are_finite(kind):
    @jax.jit
    def derivatives(f, lam):
        def loss(f, lam):
            return jnp.sum(jnp.square(denoise_tv(f, lam, kind=kind).image))

        first = jax.grad(loss, argnums=(0, 1))
        return jax.jvp(lambda lam: first(f, lam), (lam,), (1.0,))

    masks = [jnp.zeros((6, 5, 1)), jnp.full((6, 5, 1), 0.3), (noise(6, 5, 1) > 0.5) * 1.0]
    for f in masks:
        for lam in (0.0, 0.125, 0.25, 1.0, 10.0):
            for leaf in jax.tree.leaves(derivatives(jnp.float32(f), jnp.float32(lam))):
                assert jnp.isfinite(leaf).all()


@pytest.mark.parametrize("kind", KINDS)
def test_lambda_zero_is_the_identity_with_its_derivative(x64, kind):
    f = jnp.asarray(noise(5, 5, 1))
    loss = functools.partial(denoise_tv, kind=kind)
    _, pull = jax.vjp(lambda f, lam: loss(f, lam).image, f, 0.0)
    by_f, by_lam = pull(f)
    np.testing.assert_array_equal(by_f, f)
    slope = jax.grad(functools.partial(total_variation, kind=kind))(f)
    np.testing.assert_allclose(by_lam, -jnp.vdot(slope, f), rtol=1e-12)


@pytest.mark.parametrize("kind", [pytest.param("anisotropic", marks=pytest.mark.slow), "isotropic"])
def test_jit_vmap_loop_and_shapes_agree(x64, kind):
    f = noise(2, 3, 6, 5, 2)
    lam = jnp.array([[0.1, 0.2, 0.3]])  # broadcasts to [2, 3]

    def solve(f, lam):
        return denoise_tv(f, lam, kind=kind)

    whole = solve(f, lam)
    assert whole.image.shape == f.shape and whole.gap.shape == whole.iterations.shape == (2, 3)
    mapped = jax.vmap(jax.vmap(solve), in_axes=(0, None))(f, lam[0])
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-14), whole, mapped)
    slope = jax.jit(jax.vmap(jax.grad(lambda f, lam: solve(f, lam).image[0, 0, 0])))
    one = jax.jit(jax.grad(lambda f: solve(f, lam[0]).image[:, 0, 0, 0].sum()))(f[0])
    np.testing.assert_allclose(slope(f[0], lam[0]), one, atol=1e-12)


@pytest.mark.parametrize("kind", ["anisotropic", "isotropic"])
def test_only_differences_matter(kind):
    """A level of 1000 in float32 left a solution off by 6e-4, and its certificate as coarse."""
    level = 1000
    f = jnp.asarray(noise(2, 16, 16, 1), jnp.float32) + level
    low = denoise_tv(f - level, 0.1, kind=kind, tolerance=1e-5)
    high = denoise_tv(f, 0.1, kind=kind, tolerance=1e-5)
    assert (high.gap <= 1e-5).all()
    np.testing.assert_allclose(high.image - level, low.image, atol=6.2e-5)  # one unit of 1000
    slope = jax.jit(jax.grad(lambda f: jnp.sum(denoise_tv(f, 0.1, kind=kind).image[:, 3, 4])))
    np.testing.assert_allclose(slope(f), slope(f - level), atol=1e-4)


def test_it_stays_within_the_range_of_the_image():
    f = jnp.asarray(noise(4, 16, 16, 1)) > 0.4
    u = denoise_tv(f, 0.3, kind="isotropic", tolerance=0.3).image
    assert u.min() >= 0 and u.max() <= 1


@pytest.mark.parametrize("lam", [-0.3, jnp.nan, jnp.inf])
def test_what_is_no_weight_is_refused_or_nan(lam):
    f = jnp.asarray(noise(2, 5, 4, 1))
    for given in (lam, np.float32(lam), np.array([0.1, lam]), jnp.float32(lam)):
        with pytest.raises(ValueError, match=rf"lam must be .*; got {lam}"):
            denoise_tv(f, given)
        with pytest.raises(ValueError, match=rf"lam must be .*; got {lam}"):
            jax.jit(lambda f, given=given: denoise_tv(f, given).image)(f)
    traced = jax.jit(lambda lam: denoise_tv(f, lam))(jnp.array([0.1, lam]))
    assert jnp.isfinite(traced.image[0]).all() and jnp.isnan(traced.image[1]).all()


@pytest.mark.parametrize("shape", [(0, 8, 8, 1), (2, 8, 8, 0), (2, 0, 8, 1)])
def test_nothing_is_denoised_to_nothing(shape):
    assert denoise_tv(jnp.zeros(shape), 0.1).image.shape == shape
    assert denoise_tv(jnp.zeros(shape), 0.1).gap.shape == shape[:1]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_an_image_that_is_not_finite_is_nan_throughout_and_alone(bad):
    f = jnp.zeros((2, 60, 60, 1)).at[0, 0, 0].set(bad)
    result = denoise_tv(f, 0.1)
    assert jnp.isnan(result.image[0]).all() and not result.gap[0] <= 1e-6
    np.testing.assert_array_equal(result.image[1], 0)


def test_compiles_once(monkeypatch):
    traces = []

    def fista(*arguments, **options):
        traces.append(arguments[0].shape)
        return solvers.fista(*arguments, **options)

    monkeypatch.setitem(SOLVERS, "fista", fista)
    for lam, tolerance in ((0.1, 1e-3), (0.2, 1e-4), (jnp.array(0.3), 1e-5)):
        # The number of iterations is no other test's, so that nothing is compiled yet.
        denoise_tv(jnp.ones((2, 7, 11, 1)), lam, tolerance=tolerance, max_iterations=9_998)
    assert traces == [(2, 7, 11, 1)]


def test_precision_of_the_input():
    assert denoise_tv(jnp.ones((4, 4, 1), jnp.bfloat16), 0.1).image.dtype == jnp.float32
    assert denoise_tv(np.ones((4, 4, 1), np.uint8), 1).image.dtype == jnp.float32


def test_errors_name_the_value():
    f = jnp.zeros((2, 4, 4, 1))
    for match, arguments, options in (
        (r"\(4, 4\)", (f[0, ..., 0], 0.1), {}),
        (r"-0\.5", (f, -0.5), {}),
        (r"\(3,\).*\(2,\)", (f, jnp.ones(3)), {}),
        ("'huber'", (f, 0.1), {"kind": "huber"}),
        ("'newton'", (f, 0.1), {"method": "newton"}),
        ("tolerance.*0", (f, 0.1), {"tolerance": 0.0}),
        ("tolerance.*-1", (f, 0.1), {"tolerance": np.float32(-1)}),
        ("tolerance.*nan", (f, 0.1), {"tolerance": jnp.array(jnp.nan)}),
        ("max_iterations.*0", (f, 0.1), {"max_iterations": 0}),
        ("max_iterations must be at most", (f, 0.1), {"max_iterations": 10**12}),
        (r"max_iterations.*2\.5", (f, 0.1), {"max_iterations": 2.5}),
        ("image must be real.*complex64", (f * 1j, 0.1), {}),
        ("lam must be real.*complex64", (f, jnp.array(1j)), {}),
    ):
        with pytest.raises(ValueError, match=match):
            denoise_tv(*arguments, **options)
    assert set(SOLVERS) == {"fista", "primal_dual", "chambolle", "lbfgs"}


def test_the_derivative_is_linear_however_small_the_cotangent():
    """A solve that squares what it gets loses it from 1e-19 on, without a word."""
    rng = np.random.default_rng(0)
    image, along = (jnp.asarray(rng.normal(size=(1, 8, 8, 1)), jnp.float32) for _ in range(2))

    @jax.jit
    def gradient(scale):
        def loss(image):
            u = denoise_tv(image, 0.5, kind="isotropic", tolerance=1e-4, max_iterations=1000)[0]
            return scale * jnp.sum(along * u)

        return jax.grad(loss)(image)

    expected = gradient(1.0)
    for scale in (1e-18, 1e-30):
        np.testing.assert_allclose(gradient(scale) / scale, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "dtype", "method"),
    [("isotropic", np.float32, "primal_dual"), ("anisotropic", np.float32, "fista"),
     ("isotropic", np.float64, "fista")],
)  # fmt: skip
def test_the_default_is_the_quickest_method(x64, kind, dtype, method):
    f = noise(1, 8, 8, 1).astype(dtype)
    default = denoise_tv(f, 0.1, kind=kind, tolerance=1e-4)
    named = denoise_tv(f, 0.1, kind=kind, tolerance=1e-4, method=method)
    np.testing.assert_array_equal(default.image, named.image)
    np.testing.assert_array_equal(default.iterations, named.iterations)
    np.testing.assert_array_equal(denoise_tv(f, 0.0, kind=kind).image, f)
