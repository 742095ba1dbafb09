"""The report: of each table, figure and claim of the paper, what the results say.

    python -m experiments.report [--scale=SCALE] [--results=DIR] [--others=DIR] [--out=DIR]

Reads the files of `experiments.run`, of the study of lambda (OTHERS/lambda) and of leaks
(OTHERS/leak*), and nothing else. Writes OUT/REPORT.md with its figures in OUT/report,
OUT/report.html in one piece, and the table of README.md between its two marks (--readme, of results
other than smoke's). What is missing in the results is left out, and said.
"""

from pathlib import Path
from typing import Any

from absl import flags

from experiments import charts, claims, kept, results, runs, tables
from experiments.document import Block, Heading, Picture, Table, Text, markdown, page
from experiments.findings import Findings
from experiments.lambda_claims import Study, read_pieces
from experiments.runs import PAPER_LAMBDA
from tvjax import files, program
from tvjax.errors import UserError

TITLE = "The paper's tables, figures and claims"
BEGIN, END = "<!-- results: written by experiments.report -->", "<!-- end of results -->"


def define_flags() -> None:
    flags.DEFINE_enum(
        "scale", None, list(runs.SCALES), "Which results; default: the largest that there are."
    )
    flags.DEFINE_string("results", "results/runs", "Folder of the results of experiments.run.")
    flags.DEFINE_string("others", "results", "Folder of the other results: lambda, leak*.")
    flags.DEFINE_string("out", "results", "Folder of the report.")
    flags.DEFINE_string(
        "readme", "README.md", "File whose table is written anew; none: no file is changed."
    )


def build(f: Findings, others: Path, figures: Path) -> list[Block]:
    """All parts of the report; draws its figures."""
    figures.mkdir(parents=True, exist_ok=True)
    studies = read_studies(others / "lambda")
    found = claims.all_claims(f, studies, claims.read_leaks(others))
    return [
        Heading(TITLE, 1), *origin(f), Heading("Claims"), Text(RULES), tables.verdicts(found),
        *table_one(f, studies), *sweeps(f, figures), *learning(f, studies, others),
        *noise(f, figures), *costs(f), *readings(f), *real(f), *pictures(f, figures),
        *leaks(others), *missing(f),
    ]  # fmt: skip


RULES = (
    "Intervals are of 95 %. A difference of test IoU takes seeds and test tiles as sources of "
    "chance (`tvjax.scoring.methods.compare`, paired by seed); of other scores, seeds alone "
    "(Student's t). A gain **holds** where its interval lies above 0 and reaches the paper's "
    "figure, and does not hold where that figure lies above the whole interval, which is not above "
    "0; an equality holds where the interval lies "
    f"within {claims.MARGIN:g} point of 0 and does not where it lies outside; all else is "
    "**undecided**. `N points show`: the difference that so many seeds would have shown with 80 % "
    "power at the 5 % level, by their spread. Of so many intervals one or the other misses by "
    "chance."
)


def read_studies(folder: Path) -> dict[str, Study]:
    """The study of lambda, by set."""
    pieces = read_pieces(folder)
    names = dict.fromkeys(name.split("_")[1] for name in pieces if name.startswith("curve_"))
    return {name: Study(pieces, name) for name in names}


def origin(f: Findings) -> list[Block]:
    """Where the numbers come from."""
    members, trained = list(f.files.values()), f.of("train")
    versions = {f"{k} {v}" for m in members for k, v in m["versions"].items() if v}
    parts = [
        "; ".join(sorted({m["hardware"] for m in members})),
        f"{sum(m['seconds'] for m in members) / 3600:.1f} hours in all",
        f"commits {', '.join(sorted({str(m.get('commit')) for m in members}))}",
        ", ".join(sorted(versions)),
    ]
    return [
        Text(
            f"Scale `{f.name}`: {len(members)} result files, {len(trained)} of them trainings on "
            f"the set `{f.main}`. {_sizes(trained[0], f) if trained else ''}"
        ),
        Text(
            f"{'; '.join(parts)}. Every file has its config, seed and seconds. Where the paper's "
            "own tiles were not used, its figures stand beside ours for the direction and the size "
            "of effects, not to be met."
        ),
    ]


def _sizes(member: dict[str, Any], f: Findings) -> str:
    """What was trained, in a sentence."""
    config, tiles = member["config"], member["tiles"]
    model, train, size = config["model"], config["train"], config["data"]["size"]
    others = "the set's 60 and 600 more scenes, of another seed"
    return (
        f"U-Net of width {model['width']}, depth {model['depth']}, tiles of {size} pixels, batches "
        f"of {train['batch_size']}, Adam at {config['optimizer']['learning_rate']:g}, constant, "
        f"{train['steps']} steps ({f.scale.epochs} epochs), no augmentation; {tiles['train']} "
        f"training, {tiles['val']} validation and {tiles['test']} test tiles"
        + (f" ({others})" if f.main == "embedded" else "")
        + f"; of the training tiles {min(f.scale.train_scored, tiles['train'])} are scored."
    )


def table_one(f: Findings, studies: dict[str, Study]) -> list[Block]:
    """Table 1, the compactness of its masks, and what selection alone gains."""
    curse = claims.winners_curse(studies)
    return [
        Heading("Table 1"),
        Text("Mean IoU over images in per cent, a tile without roofs and without prediction counts "
             "100; differences are in points."),
        tables.table_one(f),
        Text("How compact the masks are, and what other scores say of the same nets (test):"),
        tables.masks(f),
        *([Text(f"**What choosing alone gains** (width 16, 400 steps, `results/lambda`): {curse}")]
          if curse else []),
    ]  # fmt: skip


def sweeps(f: Findings, folder: Path) -> list[Block]:
    """Figures 5 and 6, and their numbers."""
    charts.courses(f, folder / "figure5.png")
    charts.sweeps(f, folder / "figure6.png")
    charts.compactness(f, folder / "components.png")
    parts = {
        "LU-Net (paper's Lambda_3):": tables.sweep(f, "lunet", f.scale.lambdas),
        f"RU-Net. {_inert(f)}": tables.sweep(f, "runet", (PAPER_LAMBDA, *f.scale.active)),
        "U-Net + TV (paper's Lambda_1), on the first tiles of train and test:": (
            tables.denoising(f)
        ),
    }
    numbers = [x for text, table in parts.items() if table.rows for x in (Text(text), table)]
    return [
        Heading("Figures 5 and 6: training, and the choice of lambda"),
        Picture(folder / "figure5.png", "Figure 5: mean IoU by epoch; bands are 95 % over seeds"),
        Picture(folder / "figure6.png", "Figure 6: mean IoU over lambda, final nets"),
        *numbers,
        Picture(folder / "components.png", "Components of LU-Net's test masks over lambda"),
    ]  # fmt: skip


def _inert(f: Findings) -> str:
    found = f.of("layer")
    if not found:
        return ""
    moves = ", ".join(
        f"{m:.1e} at {lam:g}" for lam, m in zip(found[0]["lambdas"], found[0]["moves"], strict=True)
    )
    return (
        f"The most that one iteration of its layer moves any probability of a trained net: {moves}."
    )


def learning(f: Findings, studies: dict[str, Study], others: Path) -> list[Block]:
    """Lambda learned, and the verdict of the study of lambda."""
    blocks: list[Block] = [
        Heading("Section 7: lambda by gradients"),
        Text(f"Lambda begins at {PAPER_LAMBDA:g}; swept: the best of {len(f.weights())} weights "
             "by validation IoU, seed by seed."),
        tables.learned(f),
    ]  # fmt: skip
    solvers = tables.solvers(f)
    if len(solvers.rows) > 2:
        blocks += [Heading("By the solvers of the field", 3), Text(SOLVERS), solvers]
    settings = tables.settings(f)
    if len(settings.rows) > 2:
        blocks += [Heading("By other settings", 3), Text(SETTINGS), settings]
    if "embedded" in studies and "exact" in studies["embedded"].learned():
        blocks += [Heading("Which estimator finds lambda", 3), Text(_study(studies["embedded"]))]
    shown = {
        "lambda_study.png": "Final validation loss over lambda, and what each estimator learned",
        "lambda_slopes.png": "Derivatives in log lambda at fixed lambda",
    }
    pictures = [Picture(others / "lambda" / name, text) for name, text in shown.items()]
    return blocks + [p for p in pictures if p.path.exists()]


SOLVERS = (
    "The first seeds of the same nets, lambda moved at every fourth step from 1e-6, with the "
    "solvers' settings as `configs/base.py` has them (`f2sa`: both trainings from the first step "
    "on, 4 steps in an update). Validation loss is the cross-entropy of the whole split. Times are "
    "those of steps in turn, see Cost."
)

SETTINGS = (
    "`exact` moves lambda at every fourth step at a rate of 0.05. The others differ in the rate "
    "(`slow` 0.01, `fast` 0.2), in how often lambda is moved (`every_1`), in how many steps an "
    "update looks through (`forward_5`, `forward_20`; `online`: all since the warm-up; "
    "`online_0.9`: with a memory that fades), and in what moves lambda (`gated`: "
    "`hypergrad.significance=2`; `training_loss`: no validation tiles). Where updates are rarer or "
    "more frequent the rate is such that lambda may go as far in a training."
)


def _study(study: Study) -> str:
    parts = []
    for name in study.learned():
        lams, each = claims.learned_loss(study, name)
        d = claims.mean(each)
        low, high = min(lams), max(lams)
        parts.append(f"`{name}` {d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}], lambda {low:.1e} to "
                     f"{high:.1e}")  # fmt: skip
    return (
        "Final validation loss minus that of lambda = 0 with the same seed, begun at 1e-8 or 1e-6 "
        f"(width 16, 400 steps, one GPU): {'; '.join(parts)}. An estimator **finds lambda** where "
        "the interval lies below 0: none does; where it lies above, it loses. All tables: "
        "[results/lambda](lambda/lambda_study.md)."
    )


def noise(f: Findings, folder: Path) -> list[Block]:
    """Figure 8."""
    if not f.of("noise"):
        return []
    charts.robustness(f, folder / "figure8.png")
    tiles = f.of("noise")[0]["tiles"]
    return [
        Heading("Figure 8: robustness to noise"),
        Text(f"Mean test IoU over {tiles} tiles and {f.scale.noise_seeds} noise seeds; noise is "
             "not clipped. Gains: intervals that hold for all sigmas at once (Bonferroni)."),
        tables.noise(f),
        Picture(folder / "figure8.png", "Figure 8: test IoU under Gaussian noise"),
    ]  # fmt: skip


def costs(f: Findings) -> list[Block]:
    """What a step of each method costs."""
    if not f.of("cost"):
        return []
    hardware = f.of("cost")[0]["hardware"]
    return [
        Heading("Cost"),
        Text(f"Steps in turn, {f.scale.rounds} rounds, {hardware}. An update of lambda replaces "
             "one training step; by default every fourth step is one."),
        tables.costs(f),
    ]  # fmt: skip


def readings(f: Findings) -> list[Block]:
    """The three readings of eq. 9's scale."""
    table = tables.readings(f)
    text = (
        "Eq. 9 does not say over what TV is summed or averaged. A mean over images is the sum at a "
        "lambda that is smaller by the batch, one over pixels at one that is smaller by all pixels "
        "of the batch; the trainings are the same but for rounding:"
    )
    return [Heading("Three readings of the TV term, lambda = 1e-6"), Text(text), table]


def real(f: Findings) -> list[Block]:
    """Real tiles."""
    table = tables.real(f)
    if table is None:
        return []
    longs = f.of("long", f.scale.real)
    names = {"unet": "U-Net", "exact": "LU-Net with learned lambda"}
    shown = [
        Picture(f.folder / m["picture"], "Real test tiles: outlines of truth (blue) and of "
                f"{names[m['run']['method']]} (red), {f.scale.long_epochs} epochs")
        for m in longs if m.get("picture")
    ]  # fmt: skip
    tiles = next(iter(f.of("train", f.scale.real) + longs))["tiles"]
    text = (
        f"`{f.scale.real}`: {tiles['train']} / {tiles['val']} / {tiles['test']} real tiles; "
        "constant rate, no augmentation."
    )
    return [Heading("Real tiles"), Text(text), table, *shown]


def pictures(f: Findings, folder: Path) -> list[Block]:
    """Figures 1, 2, 4 and 7."""
    blocks: list[Block] = []
    for member in f.of("figure1"):
        charts.outliers(member, folder / "figure1.png")
        blocks.append(Picture(folder / "figure1.png", "Figure 1: denoising at lambda = 1/4; green "
                              "is the truth's outline"))  # fmt: skip
    captions = {
        "figure2": "Figure 2: a test tile in its own size, shrunk, and with its mask's outline",
        "figure4": "Figure 4: masks of three nets (seed 0, lambda = 1e-6); the rules that chose "
        "the tiles stand above them",
        "figure7": "Figure 7: a tile with Gaussian noise of 0.05",
    }
    for kind, caption in captions.items():
        blocks += [Picture(f.folder / m["picture"], caption) for m in f.of(kind)]
    return [Heading("Figures 1, 2, 4 and 7"), *blocks] if blocks else []


def leaks(others: Path) -> list[Block]:
    """Pictures of twins."""
    sheets = claims.leak_pictures(others)
    if not sheets:
        return []
    return [Heading("Leaks"), *(Picture(s, f"Twins ({s.parent.name})") for s in sheets)]


def missing(f: Findings) -> list[Block]:
    """Runs of the list that have no result yet."""
    wanted = [r.name for r in runs.runs(f.scale, f.main)]
    left = [name for name in wanted if name not in f.files]
    if not left:
        return [Text(f"All {len(wanted)} runs of the list have a result.")]
    shown = ", ".join(left[:12]) + (" and others" if len(left) > 12 else "")
    return [Text(f"{len(left)} of the list's {len(wanted)} runs have no result yet: {shown}.")]


MAIN = "U-Net", "U-Net + TV", "RU-Net", "LU-Net", "LU-Net, lambda learned, exact"
"""Methods of the README's table."""


def readme(f: Findings, others: Path) -> str:
    """The table of the README, with its marks."""
    rows, command = [_shown_run(others)], f"`python -m experiments.run --scale={f.name}`"
    one = {row[0]: row for row in tables.table_one(f).rows}
    two = {row[0]: row for row in tables.masks(f).rows}
    for name in (name for name in MAIN if name in one):
        paper = f"{tables.PAPER[name][3]:.2f}" if name in tables.PAPER else "no figure"
        _, _, _, _, _, test, less, seeds = one[name]
        rows.append(
            [f"{name}, {f.main}", paper, test, two[name][4], two[name][1], less, seeds, command]
        )
    real_table = tables.real(f)
    for row in real_table.rows if real_table else []:
        rows.append([f"{row[0]}, real tiles", "no figure", row[2], row[3], row[6], row[7], row[8],
                     f"{command} `--data={f.scale.real}=TILES`"])  # fmt: skip
    header = ["model, data", "paper: test IoU, %", "here: test IoU, %", "pooled",
              "components (truth)", "test IoU, minus U-Net", "seeds", "command"]  # fmt: skip
    table = markdown([Table(header, [row for row in rows if row])], Path()).strip()
    return f"{BEGIN}\n\n{table}\n\n{END}"


def _shown_run(others: Path) -> list[str]:
    """The row of the run that `make run` repeats; of no such run none."""
    path = others / "lunet_bilevel" / "summary.json"
    if not path.exists():
        return []
    found = results.read_object(path)
    names = "iou", "pooled_iou", "components", "true_components"
    results.check(path, found, {f"splits.test.{name}": results.NUMBER for name in names})
    test = found["splits"]["test"]
    return [
        "LU-Net, lambda learned, embedded set, width 16", "no figure",
        f"{100 * test['iou']:.1f}", f"{100 * test['pooled_iou']:.1f}",
        f"{test['components']:.1f} ({test['true_components']:.1f})", "", "1", "`make run`",
    ]  # fmt: skip


def write_readme(path: Path, block: str) -> None:
    """Puts the table between its marks.

    Raises:
      UserError: the file has not both marks.
    """
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"--readme={path} lacks the lines {BEGIN!r} and {END!r}")
    files.write_text(path, before + block + after)


def choose(place: Path) -> str:
    """The largest scale that has results.

    Raises:
      UserError: there are none.
    """
    found = [name for name in runs.SCALES if next((place / name).glob("*.json"), None)]
    if not found:
        raise UserError(f"--results={place} holds none; run python -m experiments.run first")
    return found[-1]


def main(argv: list[str]) -> None:
    """Writes the report."""
    del argv
    args: Any = flags.FLAGS
    place, others, out = (Path(args[name].value) for name in ("results", "others", "out"))
    name = args.scale or choose(place)
    f = Findings(place, runs.SCALES[name], name)
    if not f.files:
        raise UserError(f"--results={place} holds nothing of --scale={name}")
    kept.check_report("out", out, ("REPORT.md", "report.html", "report"), TITLE)
    blocks = build(f, others, out / "report")
    files.write_text(out / "REPORT.md", markdown(blocks, out))
    files.write_text(out / "report.html", page(blocks, TITLE))
    written = [out / "REPORT.md", out / "report.html"]
    if args.readme != "none" and name != "smoke":
        write_readme(Path(args.readme), readme(f, others))
        written.append(Path(args.readme))
    print(", ".join(map(str, written)))


if __name__ == "__main__":
    define_flags()
    program.run(main)
