"""The folder of a run: the config and the data it belongs to, and its summary."""

import contextlib
import fcntl
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tvjax import files
from tvjax.data import local, reading
from tvjax.data.reading import Reading
from tvjax.errors import UserError, short
from tvjax.fields import flat
from tvjax.inference.scales import Scales
from tvjax.scoring.mask_scores import describe_band
from tvjax.training import parallel
from tvjax.types import Config

# What may differ when a run is resumed: none of these changes what a step computes, nor by which
# score the best checkpoint so far is the best.
_MAY_CHANGE = (
    "name", "train.steps", "train.log_every", "evaluation.every", "evaluation.batch_size",
    "evaluation.panels", "checkpoint.", "parallel.", "train.steps_per_dispatch", "data.directory",
    "data.cache", "data.resident",
)  # fmt: skip

# What is the same in all checkpoints of a run, and changes what its net predicts.
_OF_NET = ("seed", "data.boundaries", "model.", "regularizer.", "denoise.kind", "train.ema")

# What a run may change after it was ended by a number that is not finite, if its end says so.
_MAY_BE_LESS = (
    "optimizer.learning_rate", "hypergrad.learning_rate", "hypergrad.rates.learning_rate",
    "hypergrad.rates.weight_decay", "hypergrad.rates.loss_mix", "hypergrad.rates.tile_weights",
)  # fmt: skip
_STOPPED = "stopped.json"

# Fields that were added since, and what runs without them had.
_ENCODER = {"encoder": None, "encoder_rate": 1.0, "weights": None, "weights_sha256": None}
_ADDED = {
    "data": {"boundaries": False},
    "model": {"precision": "default", **_ENCODER},
    "evaluation": {"score": "iou"},
    "loss": {"mix": 0.5},
    "train": {"ema": 0.0, "patience": 0, "accumulate": 1},
    "augmentation": dict.fromkeys(
        ("rotation", "scale", "crop", "contrast", "saturation", "hue", "blur"), 0.0
    ),
    "hypergrad": {
        "learn": ["lambda"],
        "block": 1,
        "decay": 1.0,
        "solver": dict(scale=0.01, damping=0.1, terms=5, sigma=10.0),
        "guard": "warn",
        "rates": dict(learning_rate=0.01, weight_decay=0.05, loss_mix=0.05, tile_weights=0.1),
    },
}


_LOCK = ".lock"
"""The file by whose lock a run keeps others out; it stays."""

_WRITTEN = (
    "config.json", "tiles.json", "metrics.jsonl", "summary.json", "results.jsonl", "curves.png",
    "lambda.png", "learned.png", "predictions.png", "sweep.png", "tile_weights.csv", "stopped.json",
)  # fmt: skip
"""Files of a run or a sweep, which replaces those that are there."""

_DAMAGED_SUMMARY = "is damaged; move it away, and the command that trained the run scores it again"


def check(workdir: Path, config: Config) -> None:
    """Checks that the folder holds a run of the same config, or none.

    It holds a run from the first checkpoint on: what a refused or early killed command left behind
    binds nobody.

    Raises:
      UserError: it holds a run of another config, a sweep or prepared tiles, or a link in place
        of one of its folders.
    """
    if _holds_sweep(workdir):
        raise UserError(f"{workdir} holds a sweep (results.jsonl); use another --workdir")
    _check_place(workdir)
    stored = _read(workdir / "config.json") if _holds_run(workdir) else None
    if stored is None and _holds_run(workdir):
        parallel.say(
            f"note: {workdir} has checkpoints and no config.json: they are taken for a run of this "
            "config, seed included; if it was another, use another --workdir"
        )
    may_change = [name for name in _MAY_CHANGE if name != _decides(config)]
    _compare(workdir, stored, config, (*may_change, *_let(workdir)))


def _decides(config: Config) -> str | None:
    """What may not change after all: where evaluations decide what moves on, or how long."""
    decides = config.hypergrad.guard == "hold" or config.train.patience > 0
    return "evaluation.every" if decides else None


def recorded(workdir: Path) -> dict[str, Any] | None:
    """The config of the run (or sweep) that the folder holds, as it was stored; None: none."""
    held = _holds_run(workdir) or _holds_sweep(workdir)
    return _read(workdir / "config.json") if held else None


def describe_net(config: Config) -> dict[str, Any]:
    """The fields by which a net computes, and its seed, kept with each checkpoint."""
    return {k: v for k, v in _fields(config).items() if k.startswith(_OF_NET)}


def check_net(
    workdir: Path, config: Config, run: dict[str, Any], data: dict[str, Any] | None
) -> None:
    """Checks that a checkpoint is of the run that `config.json` and `tiles.json` describe.

    A damaged digit in them, or files of another run among this one's, may leave the shapes as they
    are and change what is computed. `run` is what was kept with the checkpoint: its `describe_net`
    as `net` and the digest of its tiles as `tiles`, not by earlier versions; `data` is the
    identity of the run's data, if it is known.

    Raises:
      UserError: a field or the tiles differ.
    """
    found, kept = describe_net(config), run.get("net", {})
    for name in sorted(found.keys() & kept.keys()):
        if found[name] != kept[name]:
            raise UserError(
                f"{workdir / 'config.json'} has {name}={short(found[name])}, and the checkpoint "
                f"was trained with {short(kept[name])}; where the former is damaged, mend it"
            )
    tiles = run.get("tiles")
    if data is not None and tiles not in (None, data["sha256"]):
        raise UserError(
            f"{workdir}: the checkpoint was trained on the tiles {short(str(tiles)[:12])}, "
            f"and the run on {data['sha256'][:12]}: checkpoints of another run are among its own"
        )


def let_change(workdir: Path, names: list[str]) -> None:
    """Lets the next command change these fields: those that its error names."""
    with files.writing("workdir", workdir):
        files.write_object(workdir / _STOPPED, {"may_change": names})


def changes(workdir: Path, config: Config) -> list[dict[str, Any]]:
    """What is other now, of the fields that an error named: its name, and from what to what."""
    names = _let(workdir)
    old = dict(flat(_read(workdir / "config.json") or {})) if names else {}
    new = dict(flat(config))
    return [
        {"field": name, "from": old.get(name), "to": new[name]}
        for name in names
        if old.get(name) != new[name]
    ]


def _let(workdir: Path) -> list[str]:
    try:
        named = json.loads((workdir / _STOPPED).read_text())["may_change"]
        return [name for name in _MAY_BE_LESS if name in named]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def check_sweep(workdir: Path, config: Config) -> None:
    """Checks that the folder holds runs of the same config but for lambda and seed, or none.

    Raises:
      UserError: it holds a sweep of another config, a run or prepared tiles, or a link in place of
        one of its folders, or lies among the files of another run or sweep.
    """
    if _holds_run(workdir):
        raise UserError(f"{workdir} holds a run of tvjax.main; use another --workdir")
    _check_place(workdir)
    check_apart(workdir)
    may_change = tuple(name for name in _MAY_CHANGE if name != "train.steps")
    stored = _read(workdir / "config.json") if _holds_sweep(workdir) else None
    _compare(workdir, stored, config, (*may_change, "seed", "regularizer.weight"))


def check_apart(workdir: Path) -> None:
    """Refuses a new run or sweep among the files of another one; what is there already goes on.

    Raises:
      UserError: naming the folder whose files they are.
    """
    if files.held_by(workdir) is None:
        files.check_apart("workdir", workdir, workdir)


def method_of(config: Config) -> dict[str, Any]:
    """The fields of a run that another one of the same method has too: all but its seed and those
    that change nothing of what a step computes."""
    may_change = (*(name for name in _MAY_CHANGE if name != "train.steps"), "seed")
    fields = _fields(config).items()
    return {name: value for name, value in fields if not name.startswith(may_change)}


def _check_place(workdir: Path) -> None:
    files.check_name(workdir.absolute())
    if files.held_by(workdir) == "prepared tiles":
        raise UserError(f"--workdir={workdir} holds prepared tiles; use another --workdir")
    for place in (workdir / name for name in files.INNER):
        if place.is_symlink():  # a foreign folder's would choose what is written and removed
            raise UserError(
                f"{place} is a link, and a run writes in its own folder only; remove it (the "
                "whole --workdir may be a link)"
            )
    check_links(workdir)
    if _is_foreign(workdir):
        why = "there is no run of tvjax beside it"
        files.check_replaced("workdir", workdir, _WRITTEN, why)


def _is_foreign(workdir: Path) -> bool:
    """Whether nothing in the folder tells of a run, were it refused or killed early."""
    try:
        stored = files.read_object(workdir / "config.json")
        return not {"train", "model", "regularizer", "hypergrad", "checkpoint"} <= stored.keys()
    except (OSError, ValueError):  # none, or damaged, which binds nobody
        return not ((workdir / _LOCK).exists() or _holds_run(workdir) or _holds_sweep(workdir))


def check_links(workdir: Path, within: str = "checkpoints") -> None:
    """Refuses links among a run's checkpoints, which would lead to what is read and removed, and
    what is no file there or beside them: to open a pipe waits for who writes into it.

    Those of several runs lie within their folder itself, "".

    Raises:
      UserError: naming the first one.
    """
    for folder, folders, names in os.walk(workdir / within):
        for name in sorted(folders + names):
            if os.path.islink(place := os.path.join(folder, name)):
                raise UserError(
                    f"{place} is a link, and a run's files are its own; remove it, or put "
                    "what it leads to in its place"
                )
            if name in names:
                local.check_regular(place)
    for name in ("metrics.jsonl", _STOPPED):
        if (workdir / name).is_fifo():
            local.check_regular(workdir / name)


def _compare(
    workdir: Path, stored: dict[str, Any] | None, config: Config, may_change: tuple[str, ...]
) -> None:
    if stored is None:
        return
    wanted, found = _fields(config), dict(flat(as_now(stored)))
    for field in sorted(wanted.keys() - found.keys()):
        if not field.startswith(may_change):
            raise UserError(
                f"{workdir}/config.json lacks {field}: where it is damaged, move it away; where it "
                f"is of another version of tvjax, use another --workdir"
            )
    for field in sorted(found.keys() | wanted.keys()):
        if found.get(field) != wanted.get(field) and not field.startswith(may_change):
            raise UserError(
                f"{workdir} holds a run with {field[:80]}={short(found.get(field))}, this config "
                f"has {short(wanted.get(field))}; use another --workdir, or "
                f"--config.{field[:80]}={str(found.get(field))[:80]}"
            )


def check_data(workdir: Path, data: dict[str, Any], *, advice: str) -> None:
    """Checks that a run is given the data that it was trained on, wherever they lie by now.

    Args:
      workdir: the folder, of a run or a sweep; where it holds none yet, any data will do.
      data: identity of the data at hand, as `sets.identify` has them.
      advice: what to do about other data, "the latter", than its own, "the former".

    Raises:
      UserError: they are other data.
    """
    if not (_holds_run(workdir) or _holds_sweep(workdir)):
        return
    own = read_data(workdir)
    if own is None:
        parallel.say(
            f"note: {workdir} has no tiles.json, which says what data the run was trained on (it "
            f"is lost, or the run is older than such files); {_place(data)} is taken for its data"
        )
    if own is not None and own["sha256"] != data["sha256"]:
        raise UserError(
            f"{workdir} was trained on the tiles {own['sha256'][:12]} of {_place(own)}, but those "
            f"of {_place(data)} are {data['sha256'][:12]}; {advice}"
        )


def read_data(workdir: Path) -> dict[str, Any] | None:
    """The data that a run was trained on, as in `sets.identify`; None of earlier versions' runs."""
    path = workdir / "tiles.json"
    found = _read(path)
    if found is not None:
        place = found.get("directory", 0)
        tiles = found.get("train_tiles", 1)
        is_sound = isinstance(found.get("sha256"), str) and isinstance(place, (str, type(None)))
        if not is_sound or type(tiles) is not int or not 0 < tiles < 2**31:
            raise UserError(
                f"{path} is damaged; move it away: the command that trained the run writes it anew"
            )
    return found


def read_images_of(workdir: Path) -> tuple[Reading, float | None]:
    """How a run's images were read, and the metres per pixel of its tiles, where that is known.

    Raises:
      UserError: `tiles.json` is damaged.
    """
    data, path = read_data(workdir) or {}, workdir / "tiles.json"
    resolution = data.get("resolution")
    if resolution is not None and not (
        type(resolution) in (int, float) and 0 < resolution < math.inf
    ):
        raise UserError(f"{path} is damaged (resolution={short(resolution)}); mend it")
    return reading.of_json(data.get("reading"), path), resolution


def read_size(workdir: Path) -> tuple[int, int] | None:
    """Height and width of the tiles that a run was trained on; None of earlier versions' runs.

    Raises:
      UserError: `tiles.json` is damaged.
    """
    size = (read_data(workdir) or {}).get("size")
    if size is None:
        return None
    if not (
        isinstance(size, list) and [type(side) for side in size] == [int, int] and min(size) > 0
    ):
        raise UserError(f"{workdir / 'tiles.json'} is damaged (size={short(size)}); mend it")
    return size[0], size[1]


def read_scale_of(workdir: Path) -> tuple[float, float] | None:
    """The least and the most that a run's tiles were shrunk to, as shares of their images' sides.

    None: they were not, or it is not known.

    Raises:
      UserError: `tiles.json` is damaged.
    """
    found = (read_data(workdir) or {}).get("scale")
    if found is None:
        return None
    is_pair = isinstance(found, list) and len(found) == 2
    if not is_pair or not all(type(x) in (int, float) and 0 < x <= 1 for x in found):
        path = workdir / "tiles.json"
        raise UserError(f"{path} is damaged (scale={short(found)}); mend it")
    return found[0], found[1]


def read_scales(workdir: Path, chosen: float | None) -> Scales:
    """How images are scaled for the net of a run: by a chosen scale; None: as its tiles were.

    Where the run has no `tiles.json` a note says so.

    Raises:
      UserError: `tiles.json` is damaged.
    """
    if chosen is not None:
        return Scales(chosen)
    if read_data(workdir) is None:
        print(
            f"note: {workdir} has no tiles.json, which tells the scale of its tiles and how their "
            "images were read: images are taken as they are. The command that trained the run "
            "writes it anew",
            file=sys.stderr,
        )
    return Scales(resolution=read_images_of(workdir)[1], shrunk=read_scale_of(workdir))


def write_data(workdir: Path, data: dict[str, Any]) -> None:
    """Writes `tiles.json`, which tells the data of a run.

    Raises:
      UserError: the folder cannot be written.
    """
    with files.writing("workdir", workdir):
        files.write_object(workdir / "tiles.json", data)


@contextlib.contextmanager
def lock(workdir: Path, flag: str = "workdir") -> Iterator[bool]:
    """Makes the folder and keeps other runs out; the system drops the lock with the process.

    It yields False where another run is in the folder; where the file system knows no locks, True.
    `flag` is the one that names the folder.

    Raises:
      UserError: the folder cannot be written.
    """
    with contextlib.ExitStack() as held:
        with files.writing(flag, workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            # Never emptied, nor another file to which a link of a foreign folder leads.
            number = os.open(workdir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            file = held.enter_context(os.fdopen(number, "w"))
        free = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:
            pass
        yield free


def write_config(workdir: Path, config: Config) -> None:
    """Writes `config.json`, when all is known to be well and training begins.

    Raises:
      UserError: the folder cannot be written.
    """
    with files.writing("workdir", workdir):
        files.write_object(workdir / "config.json", config.to_dict())
        (workdir / _STOPPED).unlink(missing_ok=True)


def as_now(stored: dict[str, Any]) -> dict[str, Any]:
    """The content of a run's `config.json`, with the fields that were added since."""
    added = {
        name: fields | stored[name]
        for name, fields in _ADDED.items()
        if isinstance(stored.get(name), dict)
    }
    return stored | added


def read_summary(workdir: Path, config: Config) -> dict[str, Any] | None:
    """The summary of a finished run of as many steps, or None."""
    path = workdir / "summary.json"
    summary = _read(path)
    if summary is None:
        return None
    numbers = [summary.get(name) for name in ("steps", "lambda")]
    numbers.append(summary.get("denoise_weight") or 0)
    sound = all(isinstance(x, (int, float)) and math.isfinite(x) for x in numbers)
    told = summary.get("patience", {"trained": summary["steps"], "ended": False}) if sound else {}
    is_told = isinstance(told, dict) and [type(told.get(x)) for x in ("trained", "ended")] == [
        int, bool,
    ]  # fmt: skip
    if not (sound and is_told and _is_best(summary)):
        raise UserError(f"{path} {_DAMAGED_SUMMARY}")
    if summary.get("seed", config.seed) != config.seed:
        raise UserError(
            f"{path} is of seed {short(summary['seed'])}, and {workdir / 'config.json'} of seed "
            f"{config.seed}: it is of another run; move it away"
        )
    return summary if told["ended"] or told["trained"] >= config.train.steps else None


def _is_best(summary: dict[str, Any]) -> bool:
    """Whether the weight of denoising is the one that scored best; else a digit is damaged."""
    scores = summary.get("denoise_val_score")
    try:
        best = None if scores is None else max(scores, key=lambda pair: pair[1])[0]
        return scores is None or summary["denoise_weight"] == best
    except (TypeError, ValueError, LookupError):
        return False


def write_summary(workdir: Path, summary: dict[str, Any]) -> None:
    """Writes `summary.json`."""
    files.write_object(workdir / "summary.json", summary)


def format_summary(summary: dict[str, Any], workdir: Path) -> str:
    """The summary for the reader of a terminal.

    Raises:
      UserError: it is damaged.
    """
    try:
        return _format_summary(summary, workdir)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{workdir / 'summary.json'} {_DAMAGED_SUMMARY}") from error


def _format_summary(summary: dict[str, Any], workdir: Path) -> str:
    base, weight = summary["test_baselines"], summary["lambda_per_pixel"]
    score, band = summary.get("score", "iou"), summary.get("test_boundary")
    denoise = summary.get("denoise_weight")
    known: list[str] = []
    if weight is not None:
        known.append(
            f"lambda {summary['lambda']:.4g}: an edge one pixel long costs as much as a loss of "
            f"{weight:.3g} in one pixel"
        )
    elif summary["lambda"]:
        known.append(f"lambda {summary['lambda']:.4g}")
    if denoise is not None:
        known.append(f"TV denoising by {denoise:.4g}")
    words, end = ("pooled IoU", "_pooled") if score == "pooled_iou" else ("mean IoU", "")
    lines = [
        "",
        "      pooled IoU  mean IoU  of non-empty  boundary IoU"
        "  components per tile (true)  tiles (empty)",
        *(_row(name, scores) for name, scores in summary["splits"].items()),
        f"test {words} {summary['splits']['test'][score]:.4f}; "
        f"all background: {base['all_background' + end]:.4f}, "
        f"all foreground: {base['all_foreground' + end]:.4f}",
        *([describe_band(*band.values())] if band else []),
        "; ".join([*known, f"{summary['steps']} steps in {summary['seconds']:.0f} s"]),
        f"pictures of the course and of predictions: {workdir}/*.png",
    ]
    return "\n".join(lines)


def _row(name: str, s: dict[str, Any]) -> str:
    """A split's line; of earlier versions' summaries some columns are not known."""
    nonempty = s.get("nonempty_iou")
    components = f"{s['components']:.2f} ({s['true_components']:.2f})"
    tiles = f"{int(s['images'])} ({int(s['empty_images']) if 'empty_images' in s else '-'})"
    return (
        f"{name:<6}{s['pooled_iou']:>10.4f}{s['iou']:>10.4f}"
        f"{'-' if nonempty is None else format(nonempty, '.4f'):>14}{s['boundary_iou']:>14.4f}"
        f"{components:>28}{tiles:>15}"
    )


def _place(data: dict[str, Any]) -> str:
    return data["directory"] or "the embedded set"


def _holds_run(workdir: Path) -> bool:
    steps = workdir.glob("checkpoints/[0-9]*")
    return (workdir / "summary.json").exists() or any(step.name.isdigit() for step in steps)


def _holds_sweep(workdir: Path) -> bool:
    """Whether a run of a sweep is finished there, or begun and saved."""
    begun = any(_holds_run(run) for run in workdir.glob("runs/lambda=*"))
    return begun or (workdir / "results.jsonl").exists()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return files.read_object(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); move it away") from error


def _fields(config: Config) -> dict[str, Any]:
    """The fields of a config as `config.json` gives them back: lists, no tuples."""
    return dict(flat(json.loads(json.dumps(config.to_dict()))))
