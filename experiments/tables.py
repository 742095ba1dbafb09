"""The tables of the report."""

from collections.abc import Sequence

import numpy as np

from experiments.claims import (
    HOLDS,
    NOT,
    OPEN,
    Claim,
    cost_ratios,
    noise_gains,
    points,
    under_noise,
)
from experiments.document import Table
from experiments.findings import Findings, Member, average, difference, of_score
from experiments.lambda_claims import Mean, mean
from experiments.runs import HIGH_LAMBDA, PAPER_LAMBDA, SOLVERS
from experiments.runs import readings as readings_of

PAPER = {
    "U-Net": ("-", 77.16, 61.63, 61.53),
    "U-Net + TV": ("0.09", 77.26, 61.73, 61.69),
    "RU-Net": ("1e-6", 75.63, 62.97, 63.47),
    "LU-Net": ("1e-6", 76.90, 63.09, 63.72),
}
"""Table 1 of the paper: lambda, and IoU in train, validation and test, in per cent."""


def methods(f: Findings) -> dict[str, list[Member]]:
    """The rows of Table 1, and what the paper has no figures for."""
    sweep = f"LU-Net, best of {len(f.weights())} lambdas by validation"
    return {
        "U-Net": f.rows("unet"),
        "U-Net + TV": f.of("denoise"),
        "softmax control (RU-Net at lambda = 0)": f.rows("softmax"),
        "RU-Net": f.rows("runet", PAPER_LAMBDA),
        **{f"RU-Net at {lam:g}": f.rows("runet", lam) for lam in f.scale.active},
        "LU-Net": f.rows("lunet", PAPER_LAMBDA),
        sweep: f.swept(),
        "LU-Net, lambda learned, exact": f.rows("exact", PAPER_LAMBDA),
        "LU-Net, lambda learned, Algorithm 1 as printed": f.rows("printed", PAPER_LAMBDA),
    }


def verdicts(claims: Sequence[Claim]) -> Table:
    """One row per claim."""
    bold = {HOLDS, NOT, OPEN}
    rows = [
        [c.name, c.paper, c.here, f"**{c.verdict}**" if c.verdict in bold else c.verdict, c.basis]
        for c in claims
    ]
    return Table(["claim", "paper", "here, 95 % interval", "verdict", "basis"], rows)


def table_one(f: Findings) -> Table:
    """Mean IoU over images, as the paper's, in points with intervals, and the paper's figures."""
    rows = []
    for name, members in methods(f).items():
        if not members:
            continue
        _, *paper = PAPER.get(name, ("", "", "", ""))
        theirs = " / ".join(f"{x:.2f}" for x in paper) if paper[0] else "-"
        ours = [_whole(average(members, s, "iou", 100)) for s in ("train", "val", "test")]
        found = "" if name == "U-Net" else points(difference(f.rows("unet"), members))
        rows.append([name, _lambdas(members), theirs, *ours, found, str(len(members))])
    header = ["method", "lambda", "paper: train / val / test", "train", "validation", "test",
              "test, minus U-Net", "seeds"]  # fmt: skip
    return Table(header, rows)


def masks(f: Findings) -> Table:
    """Other scores of the test masks: how compact they are, and other readings of IoU."""
    rows = []
    for name, members in methods(f).items():
        if not members:
            continue
        scores = [m["scores"]["test"] for m in members]
        truth = (scores[0]["true_components"], scores[0]["true_tv"])
        components, tv = (average(members, "test", k) for k in ("components", "tv"))
        less = of_score(f.rows("unet"), members, "components")
        change = "" if name == "U-Net" else points(less)
        others = ("pooled_iou", "nonempty_iou", "boundary_iou")
        rows.append([
            name, f"{_whole(components)} ({truth[0]:.1f})", change,
            f"{_whole(tv, 0)} ({truth[1]:.0f})",
            *(_whole(average(members, "test", k, 100)) for k in others),
            _whole(average(members, "test", "bce"), 3),
        ])  # fmt: skip
    header = ["method", "components (truth)", "minus U-Net", "TV (truth)", "pooled IoU",
              "IoU of tiles with roofs", "boundary IoU", "cross-entropy"]  # fmt: skip
    return Table(header, rows)


def sweep(f: Findings, method: str, weights: Sequence[float]) -> Table:
    """Scores at each weight, and differences from the U-Net of the same seeds."""
    base, rows = f.rows("unet"), []
    for lam in weights:
        members = f.rows(method, lam)
        if not members:
            continue
        splits = [_whole(average(members, s, "iou", 100)) for s in ("train", "val", "test")]
        loss = of_score(base, members, "bce", "val")
        rows.append([
            f"{lam:g}", *splits, points(difference(base, members)), points(loss, 4),
            _whole(average(members, "test", "components")),
            _whole(average(members, "test", "tv"), 0),
            str(len(members)),
        ])  # fmt: skip
    header = ["lambda", "train", "validation", "test", "test, minus U-Net",
              "validation loss, minus U-Net", "components", "TV", "seeds"]  # fmt: skip
    return Table(header, rows)


def denoising(f: Findings) -> Table:
    """IoU of U-Net + TV at each weight, means over seeds."""
    members = f.of("denoise")
    if not members:
        return Table([], [])
    chosen = [m["best"] for m in members]
    rows = []
    for k, weight in enumerate(f.scale.weights):
        splits = [mean([100 * m["iou"][s][k] for m in members]) for s in ("train", "val", "test")]
        count = chosen.count(weight)
        rows.append(
            [f"{weight:g}", *(f"{m.value:.2f}" for m in splits), str(count) if count else ""]
        )
    return Table(["lambda", "train", "validation", "test", "seeds that choose it"], rows)


def readings(f: Findings) -> Table:
    """The three readings of the TV term at lambda = 1e-6."""
    titles = {
        "sum": "sum over pixels and batch (default)",
        "image": "sum over pixels, mean over images",
        "pixel": "mean over pixels",
    }
    rows = []
    for name, lam in readings_of(f.scale).items():
        members = f.rows("lunet", lam)
        weight = f"{members[0]['lambda_per_pixel']:.2g}" if members else "-"
        kinds = ("iou", 100), ("components", 1)
        scores = [_whole(average(members, "test", k, c)) for k, c in kinds]
        less = points(difference(f.rows("unet"), members))
        rows.append([titles[name], f"{lam:.3g}", weight, *scores, less, str(len(members))])
    header = ["reading", "is the default at lambda", "a pixel's TV against its cross-entropy",
              "test IoU", "components", "test IoU, minus U-Net", "seeds"]  # fmt: skip
    return Table(header, rows)


def noise(f: Findings) -> Table:
    """Test IoU under noise, and LU-Net's gain with intervals that hold for all sigmas at once."""
    series = {name: under_noise(f, method, lam) for name, (method, lam) in noisy(f).items()}
    series = {name: list(by.values()) for name, by in series.items() if by}
    gains = {lam: noise_gains(f, lam) for lam in (PAPER_LAMBDA, 1e-5)}
    rows = []
    for k, sigma in enumerate(f.scale.sigmas):
        values = [_whole(mean([row[k] for row in found])) for found in series.values()]
        rows.append([f"{sigma:g}", *values, *(points(found[k]) for found in gains.values())])
    header = ["sigma", *series, *(f"LU-Net at {lam:g} minus U-Net" for lam in gains)]
    return Table(header, rows)


def noisy(f: Findings) -> dict[str, tuple[str, float | None]]:
    """Method and weight of the lines of Figure 8."""
    del f
    return {
        "U-Net": ("unet", None), "RU-Net": ("runet", PAPER_LAMBDA),
        "LU-Net": ("lunet", PAPER_LAMBDA), "LU-Net at 1e-5": ("lunet", 1e-5),
    }  # fmt: skip


def costs(f: Findings) -> Table:
    """Time of a step of each method over the U-Net's."""
    titles = {
        "unet": "U-Net", "softmax": "softmax control", "runet": "RU-Net, one iteration",
        "lunet": "LU-Net", "exact": "update of lambda, exact",
        "printed": "update of lambda, Algorithm 1 as printed",
        **{name: f"update of lambda, {name}" for name in SOLVERS},
        "f2sa": "update of lambda, f2sa, with the 4 steps of both its trainings",
    }  # fmt: skip
    found = f.of("cost")
    seconds = found[0]["seconds_per_step"] if found else {}
    rows = [
        [titles[name], f"{1e3 * float(np.median(seconds[name])):.0f} ms",
         f"{value:.2f} [{low:.2f}, {high:.2f}]"]
        for name, (value, low, high) in cost_ratios(f).items()
    ]  # fmt: skip
    return Table(["step of", "median", "over a step of U-Net, same round"], rows)


def learned(f: Findings) -> Table:
    """What lambda became where it was learned."""
    rows = []
    for name, method in (("exact", "exact"), ("Algorithm 1 as printed", "printed")):
        members = f.rows(method, PAPER_LAMBDA)
        if not members:
            continue
        loss = of_score(f.rows("unet"), members, "bce", "val")
        rows.append([
            name, _ends(members), points(loss, 4),
            points(difference(f.rows("unet"), members)), points(difference(f.swept(), members)),
            str(len(members)),
        ])  # fmt: skip
    header = ["lambda learned by", "its end: median [least, most]", "validation loss, minus U-Net",
              "test IoU, minus U-Net", "test IoU, minus swept LU-Net", "seeds"]  # fmt: skip
    return Table(header, rows)


def solvers(f: Findings) -> Table:
    """What the net and lambda became by each solver, on the seeds that all have."""
    base, rows = f.rows("lunet", PAPER_LAMBDA)[: f.scale.solver_seeds], []
    for method in ("lunet", "exact", *SOLVERS) if base else ():
        members = f.rows(method, PAPER_LAMBDA)[: f.scale.solver_seeds]
        if not members:
            continue
        ends = [m["final_lambda"] for m in members]
        loss, iou = average(members, "val", "bce"), average(members, "test", "pooled_iou", 100)
        less = (
            of_score(base, members, "bce", "val"),
            of_score(base, members, "pooled_iou", factor=100),
        )
        held = method == "lunet"
        rows.append([
            "held" if held else f"`{method}`", " ".join(f"{x:.2g}" for x in ends),
            _whole(loss, 3), "" if held else points(less[0], 3),
            _whole(iou), "" if held else points(less[1]), _trainings(f, members[0]),
            str(len(members)),
        ])  # fmt: skip
    header = ["lambda", "its end, seed by seed", "validation loss", "minus held",
              "test IoU, pooled", "minus held", "time over held's", "seeds"]  # fmt: skip
    return Table(header, rows)


def settings(f: Findings) -> Table:
    """What lambda and the validation loss became by each way to learn it, from two starts."""
    rows, unets = [], f.rows("unet")
    held = f.rows("lunet", HIGH_LAMBDA)
    for method in ("lunet", "exact", *f.scale.settings):
        low, high = (f.rows(method, lam) for lam in (PAPER_LAMBDA, HIGH_LAMBDA))
        if not (low and high):
            continue
        low, high = low[: f.scale.setting_seeds], high[: f.scale.setting_seeds]
        is_held = method == "lunet"
        rows.append([
            "held" if is_held else f"`{method}`", _ends(low),
            points(of_score(unets, low, "bce", "val"), 3), _ends(high),
            points(of_score(unets, high, "bce", "val"), 3),
            "" if is_held else points(of_score(held, high, "bce", "val"), 3),
            "" if is_held else points(difference(held, high)), str(len(high)),
        ])  # fmt: skip
    starts = [f"from {lam:g}: its end" for lam in (PAPER_LAMBDA, HIGH_LAMBDA)]
    header = ["lambda", starts[0], "validation loss, minus U-Net", starts[1],
              "validation loss, minus U-Net", "minus held", "test IoU, minus held",
              "seeds"]  # fmt: skip
    return Table(header, rows)


def _ends(members: Sequence[Member]) -> str:
    """What lambda was at the end: `1.5e-06 [8.6e-07, 3.6e-06]`, median, least and most."""
    ends = [m["final_lambda"] for m in members]
    if min(ends) == max(ends):
        return f"{ends[0]:.2g}"
    return f"{np.median(ends):.2g} [{min(ends):.2g}, {max(ends):.2g}]"


def _trainings(f: Findings, member: Member) -> str:
    """Time of a training in such at a fixed lambda, by the steps that were timed in turn."""
    found, method = cost_ratios(f, "lunet"), member["run"]["method"]
    if method not in found:
        return "-"
    learning, steps = member["config"]["hypergrad"], member["config"]["train"]["steps"]
    if method == "lunet":
        return "1"
    period = max(learning["every"], learning["steps"])
    updates = -(-(steps - learning["warmup"]) // period)
    each = found[method][0] - learning["steps"]
    return f"{1 + updates * each / steps:.2f}"


def real(f: Findings) -> Table | None:
    """What was trained on real tiles."""
    data = f.scale.real
    if data is None:
        return None
    rows = []
    for kind, epochs in (("train", f.scale.epochs), ("long", f.scale.long_epochs)):
        base = f.rows("unet", None, data, kind)
        learned = f.rows("exact", PAPER_LAMBDA, data, kind)
        less = points(difference(base, learned)) if learned else ""
        rows += _real_row(f"U-Net, {epochs} epochs", base, "")
        rows += _real_row(f"LU-Net, lambda learned, exact, {epochs} epochs", learned, less)
    header = ["method", "lambda", "test IoU", "pooled", "tiles with roofs", "boundary",
              "components (truth)", "test IoU, minus U-Net", "seeds"]  # fmt: skip
    return Table(header, rows) if rows else None


def _real_row(name: str, members: Sequence[Member], less: str) -> list[list[str]]:
    """The row of a method's trainings; none without trainings."""
    if not members:
        return []
    others = ("iou", "pooled_iou", "nonempty_iou", "boundary_iou")
    scores = [_whole(average(members, "test", k, 100)) for k in others]
    truth = members[0]["scores"]["test"]["true_components"]
    components = f"{_whole(average(members, 'test', 'components'))} ({truth:.1f})"
    return [[name, _lambdas(members), *scores, components, less, str(len(members))]]


def _lambdas(members: Sequence[Member]) -> str:
    """What lambda was at the end, or which weights were chosen."""
    ends = [m["best"] if "best" in m else m["final_lambda"] for m in members]
    if members[0]["run"]["method"] in ("unet", "softmax") and "best" not in members[0]:
        return "-"
    low, high = min(ends), max(ends)
    return f"{low:.2g}" if high - low < 1e-3 * high else f"{low:.2g} to {high:.2g}"


def _whole(m: Mean | None, digits: int = 1) -> str:
    """`61.5 [60.9, 62.1]`."""
    if m is None:
        return "-"
    ends = f" [{m.low:.{digits}f}, {m.high:.{digits}f}]" if np.isfinite(m.low) else ""
    return f"{m.value:.{digits}f}{ends}"
