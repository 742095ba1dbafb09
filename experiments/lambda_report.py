"""Tables and figures of the study of lambda, from its result files alone.

    python -m experiments.lambda_report --results=DIR --out=DIR

`lambda_study.md` holds the tables; `lambda_study.png` the curve of final validation loss over
lambda, with what each estimator learned; `lambda_slopes.png` the derivatives at fixed lambda.
What is missing in the results is left out.
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import kept, lambda_figures
from experiments import lambda_tables as tables
from experiments.lambda_claims import Study, read_pieces
from tvjax import program
from tvjax.errors import UserError

TITLE = "Which estimator finds lambda"


def define_flags() -> None:
    flags.DEFINE_string(
        "results", None, "Folder of experiments.lambda_study, e.g. results/lambda.", required=True
    )
    flags.DEFINE_string("out", None, "Folder of the report, e.g. results/lambda.", required=True)


def origin(pieces: dict[str, dict]) -> list[str]:
    """Where the numbers come from."""
    first = next(iter(pieces.values()))
    config = first["config"]
    versions = ", ".join(f"{k} {v}" for k, v in first["versions"].items())
    commits = ", ".join(sorted({str(p.get("commit")) for p in pieces.values()}))
    hardware = ", ".join(sorted({p["hardware"] for p in pieces.values()}))
    sizes = ", ".join(f"{k} {config[k]}" for k in ("width", "depth", "size", "steps", "batch"))
    return [
        f"{hardware}; commit {commits}; Python {first['python']}, {versions}.",
        f"LU-Net, {sizes}; lambda moves after {config['warmup']} steps, by Adam at "
        f"{config['rate']} on log lambda at every step. Each file holds its config and seeds.",
    ]


def report(pieces: dict[str, dict]) -> tuple[str, list[Study]]:
    """The Markdown of all sets that have a curve, and their studies."""
    names = dict.fromkeys(name.split("_")[1] for name in pieces if name.startswith("curve_"))
    studies = [Study(pieces, name) for name in names]
    studies.sort(key=lambda study: -len(study.pieces))  # what was studied most comes first
    text = [f"# {TITLE}", "", *origin(pieces), ""]
    for study in studies:
        rng = np.random.default_rng(0)
        parts = {
            "Final loss over lambda": tables.curve_table(study, rng),
            "What each estimator learned": tables.learned_table(study) if study.learned() else [],
            "Against the exact one-step estimator": tables.against_exact(study),
            "Derivatives at fixed lambda": tables.slope_table(study) if study.slopes() else [],
            "Descent by the slope of the whole run": tables.descent_table(study)
            if study.descent() else [],
            "Selection alone": tables.selection(study, rng) if study.members("select") else [],
        }  # fmt: skip
        text += [f"## {study.data}", ""]
        for title, lines in parts.items():
            text += [f"### {title}", "", *lines, ""] if lines else []
    return "\n".join(text), studies


def main(argv) -> None:
    """Writes the report."""
    del argv
    args: Any = flags.FLAGS
    out = Path(args.out)
    pieces = read_pieces(Path(args.results))
    if not any(name.startswith("curve_") for name in pieces):
        raise UserError(f"--results={args.results} holds no curve_*.json of lambda_study")
    written = ("lambda_study.md", "lambda_study.png", "lambda_slopes.png")
    kept.check_report("out", out, written, TITLE)
    out.mkdir(parents=True, exist_ok=True)
    text, studies = report(pieces)
    (out / "lambda_study.md").write_text(text)
    lambda_figures.curves(studies, out / "lambda_study.png")
    written = [out / "lambda_study.md", out / "lambda_study.png"]
    if any(study.slopes() for study in studies):
        lambda_figures.slopes([s for s in studies if s.slopes()], out / "lambda_slopes.png")
        written.append(out / "lambda_slopes.png")
    print(", ".join(map(str, written)))


if __name__ == "__main__":
    define_flags()
    program.run(main)
