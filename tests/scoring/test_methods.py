"""Methods compared by several trainings of each: known answers, and how often a claim is false."""

import numpy as np
import pytest
from scipy import stats

from experiments import false_claims
from tvjax.scoring import methods


def sums(scores):
    """Scores `[S, N]` as sums: their mean over images is compared."""
    scores = np.asarray(scores, float)
    return np.stack([scores, np.ones_like(scores)], axis=-1)


def t(runs):
    return stats.t.ppf(0.975, runs - 1)


def test_seeds_alone_give_student_s_interval():
    one, two = np.array([0.5, 0.53, 0.51]), np.array([0.6, 0.58, 0.57, 0.64])
    first, second = (sums(np.tile(x[:, None], 30)) for x in (one, two))
    found = methods.compare(first, second)
    half = (t(3) ** 2 * one.var(ddof=1) / 3 + t(4) ** 2 * two.var(ddof=1) / 4) ** 0.5
    assert found["difference"] == pytest.approx(two.mean() - one.mean())
    assert found["high"] - found["difference"] == pytest.approx(half)
    assert found["image_error"] == pytest.approx(0, abs=1e-12)
    apart = methods.compare(first, second[:3])
    half = t(3) * (one.var(ddof=1) / 3 + two[:3].var(ddof=1) / 3) ** 0.5
    assert apart["high"] - apart["difference"] == pytest.approx(half)
    found = methods.compare(first, second[:3], paired=True)
    expected = stats.ttest_rel(two[:3], one).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    narrow = methods.compare(first, second[:3], paired=True, confidence=0.5)
    assert found["low"] < narrow["low"] < narrow["high"] < found["high"]


@pytest.mark.parametrize("size", [1, 4])
def test_images_are_drawn_by_blocks(size):
    rng = np.random.default_rng(0)
    change = np.repeat(rng.normal(0.1, 0.2, 40), size)
    first = np.tile(rng.random(len(change)), (3, 1))
    labels = rng.permutation(40).repeat(size)
    found = methods.compare(
        sums(first), sums(first + change), blocks=labels, resamples=20_000, paired=True
    )
    assert found["seed_error"] == pytest.approx(0, abs=1e-12) and found["blocks"] == 40
    error = change[::size].std(ddof=1) / 40**0.5
    assert found["image_error"] == pytest.approx(error, rel=0.02)
    assert found["high"] - found["difference"] == pytest.approx(
        stats.t.ppf(0.975, 39) * error, rel=0.02
    )


def test_pooled_iou_is_recomputed_in_every_resample():
    """Against the linearised error of a ratio of sums, in which large objects weigh more."""
    rng = np.random.default_rng(1)
    whole = rng.exponential(100, 400)
    shares = rng.beta(4, 2, (2, 400))
    first, second = (np.stack([s * whole, whole], axis=-1)[None] for s in shares)
    rates = [float((s * whole).sum() / whole.sum()) for s in shares]
    found = methods.compare(first, second, resamples=20_000)
    assert found["difference"] == pytest.approx(rates[1] - rates[0])
    residuals = ((shares[1] - rates[1]) - (shares[0] - rates[0])) * whole / whole.mean()
    assert found["image_error"] == pytest.approx(residuals.std() / 400**0.5, rel=0.03)
    rows = [
        {"iou": 1.0, "true_positive": 0.0, "false_positive": 0.0, "false_negative": 0.0},
        {"iou": 0.25, "true_positive": 2.0, "false_positive": 5.0, "false_negative": 1.0},
    ]
    assert methods.ratio(methods.pooled_iou(rows).sum(0)) == 0.25
    assert methods.ratio(methods.mean_iou(rows).sum(0)) == 0.625
    assert methods.ratio(np.zeros((3, 2))).tolist() == [1, 1, 1]


def test_what_is_not_known_is_not_told():
    scores = np.random.default_rng(0).random((3, 30))
    one = methods.compare(sums(scores[:1]), sums(scores[1:2]))
    assert one["seed_error"] is None and one["low"] < one["difference"] < one["high"]
    uneven = methods.compare(sums(scores[:1]), sums(scores[1:]))
    assert uneven["low"] is None and uneven["seed_error"] is None and uneven["image_error"] > 0
    few = methods.compare(sums(scores[:2]), sums(scores[1:]), blocks=np.arange(30) // 6)
    assert few["blocks"] == 5 and few["low"] is None and few["image_error"] is None


def test_the_order_of_sides_and_of_runs_does_not_matter():
    rng = np.random.default_rng(0)
    first, second = sums(rng.random((3, 30))), sums(rng.random((4, 30)))
    found, back = methods.compare(first, second), methods.compare(second[::-1], first)
    assert found == methods.compare(first, second)
    assert (back["low"], back["high"]) == pytest.approx((-found["high"], -found["low"]), rel=0.05)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"second": sums(np.ones((2, 7)))}, "the same images are needed"),
        ({"blocks": np.arange(5)}, "the same images are needed"),
        ({"first": np.ones((2, 6))}, r"first must be sums .* \(2, 6\)"),
        ({"second": sums(np.full((2, 6), np.nan))}, "second must be finite"),
        ({"second": sums(np.ones((3, 6))), "paired": True}, "2 trainings cannot be paired with 3"),
        ({"confidence": 95}, "confidence .* 95"),
        ({"resamples": 9}, "resamples=9 "),
    ],
)
def test_what_cannot_be_compared_is_refused(change, told):
    given = {"first": sums(np.ones((2, 6))), "second": sums(np.ones((2, 6)))} | change
    with pytest.raises(ValueError, match=told):
        methods.compare(given.pop("first"), given.pop("second"), **given)


@pytest.mark.parametrize("runs", [(2, 2), (3, 3), (2, 10)])
@pytest.mark.parametrize("kind", ["equal", "unequal spread", "blocks"])
def test_false_claims_are_as_rare_as_they_are_said_to_be(runs, kind):
    """A quick look; `experiments.false_claims` takes a longer one, whose shares the notes have."""
    rng, times, false = np.random.default_rng(0), 300, 0
    for _ in range(times):
        first, second, labels = false_claims.draw(rng, runs, **false_claims.KINDS[kind])
        paired = runs[0] == runs[1]
        false += false_claims.ours(first, second, labels, paired=paired)
    assert false / times < 0.05 + 2 * (0.05 / times) ** 0.5


def test_a_bootstrap_over_seeds_or_single_images_would_claim_too_much():
    """What the intervals above stand against: each would fail the test before."""
    rng, times = np.random.default_rng(0), 200
    false = {"bootstrap": 0, "welch": 0, "blocks ignored": 0}
    for _ in range(times):
        first, second, _ = false_claims.draw(rng, (2, 10))
        one, two = (methods.ratio(x.sum(1)) for x in (first, second))
        false["welch"] += false_claims.welch(one, two)
        false["bootstrap"] += false_claims.bootstrap(rng, one[:2], two[:2])
        first, second, _ = false_claims.draw(rng, (5, 5), block=1.0, size=6)
        false["blocks ignored"] += false_claims.ours(first, second, None)
    assert min(false.values()) / times > 0.07, false
