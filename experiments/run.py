"""Executes the list of runs of the report, as far as results are missing.

    python -m experiments.run --scale=smoke|cpu|paper [PATTERN] [--budget_minutes=N]
        [--data=NAME=TILES,...] [--results=DIR] [--nets=DIR]

Each run leaves RESULTS/SCALE/NAME.json, and a training its net in NETS/SCALE; the same command
goes on where the last one stopped. PATTERN chooses runs by name, such as 'embedded_lunet*'. `cpu`
trains on the embedded set, and on real tiles where --data=buildings=TILES names them; `paper` has
the paper's sizes, wants the tiles by --data (also packed, by `experiments.pack`, for machines
without tensorflow-datasets) and a GPU, and carries on for hours:

    python -m experiments.run --scale=paper --data=buildings=TILES --results=DIR --nets=DIR

Two at once share the work by patterns, such as '*_s[34]'. `python -m experiments.report` draws from
the results.
"""

import fnmatch
import math
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import items, kept, pack, results, runs
from experiments.trainer import Trainer
from tvjax import files, interruption, program, provenance
from tvjax.data import identity, pictures, pipeline, sets
from tvjax.data.embedded import synthetic
from tvjax.errors import UserError
from tvjax.home import expanded
from tvjax.types import Batch

TINY = 60
"""Scenes of the set of `smoke`."""


def define_flags() -> None:
    flags.DEFINE_enum("scale", "cpu", list(runs.SCALES), "How much is run, and how large.")
    flags.DEFINE_float(
        "budget_minutes", 1e9, "Minutes within which the last run must end; default: no limit."
    )
    flags.DEFINE_list("data", [], "Prepared tiles, as NAME=TILES, e.g. buildings=TILES.")
    flags.DEFINE_string("results", "results/runs", "Folder of the result files.")
    flags.DEFINE_string("nets", "runs/nets", "Folder of the trained nets.")
    flags.DEFINE_string("commit", None, "Commit to record, e.g. 57f7a64, where the code is a copy.")


class Lab:
    """The sets, programs and nets of one scale."""

    def __init__(self, scale: runs.Scale, places: dict[str, str], nets: Path):
        self.scale, self.places, self.nets = scale, places, nets
        self._trainers: dict[str, Trainer] = {}
        self._digests: dict[str, str] = {}

    def trainer(self, data: str) -> Trainer:
        """The trainer on a set, which is opened at first use."""
        if data not in self._trainers:
            self._trainers[data] = Trainer(self._open(data))
        return self._trainers[data]

    def digest(self, data: str) -> str:
        """What tells a set's tiles apart, as `sets.identify` gives it; of packed tiles the same."""
        if data not in self._digests:
            if self._packed(data):
                tiles = self.trainer(data).tiles
                pairs = {s: zip(*tiles[s], strict=True) for s in pack.SPLITS}
                found = identity.digest(pairs)
            else:
                source = self.source(data)
                found = sets.identify(sets.open_sets(**source), source["directory"])["sha256"]
            self._digests[data] = found
        return self._digests[data]

    def config(self, run: runs.Run):
        """The config of a training."""
        size = runs.config_of(run, self.scale, 1).train.batch_size
        steps = run.epochs * (len(self.trainer(run.data).tiles["train"].image) // size)
        return runs.config_of(run, self.scale, steps)

    def net(self, run: runs.Run) -> Path:
        """The file of a training's net."""
        return self.nets / f"{run.name}.msgpack"

    def source(self, data: str, seed: int = 0) -> dict[str, Any]:
        """What `sets.open_sets` opens a set by; the embedded one of that seed."""
        config = runs.config_of(runs.Run("train", data, method="unet"), self.scale, 1).data
        options = {k: config[k] for k in ("cache", "size", "limit")}
        directory = self.places.get(data)
        if data == "tiny":
            directory = str(expanded(config.cache) / f"tiny-{synthetic.VERSION}-{seed}")
            synthetic.write(directory, tiles=TINY, seed=seed, size=96, progress=False)
        return {**options, "directory": directory, "seed": seed}

    def original(self, data: str, number: int) -> np.ndarray | None:
        """The picture that a test tile was made of, where it is still at hand."""
        if self._packed(data):
            return None
        source = self.source(data)
        split = sets.open_sets(**source)["test"]
        places = [Path(source["directory"])] if source["directory"] else []
        # The embedded set's pictures lie beside its tiles, in the folder without their size.
        places.append(split.directory.with_name(split.directory.name.rpartition("-")[0]))
        found = [place / "images" / split[number]["file"] for place in places]
        return next((pictures.read_image(file) for file in found if file.is_file()), None)

    def _packed(self, data: str) -> bool:
        return self.places.get(data, "").endswith(".npz")

    def _open(self, data: str) -> dict[str, Batch]:
        if self._packed(data):
            return pack.read(self.places[data])
        splits = sets.open_sets(**self.source(data))
        tiles = {name: pipeline.resident(split, progress=False) for name, split in splits.items()}
        if data == "embedded":
            # 60 tiles are few to test by; more scenes of the same kind cost a second to score.
            others = sets.open_sets(**self.source(data, seed=1)).values()
            parts = [tiles["test"], *(pipeline.resident(s, progress=False) for s in others)]
            tiles["test"] = Batch(*(np.concatenate(x) for x in zip(*parts, strict=True)))
        return tiles


def execute(lab: Lab, todo: list[runs.Run], folder: Path, *, minutes: float = 1e9, commit=None):
    """Runs what is missing, in order: `(names done, names that failed, names left)`."""
    began, took = time.perf_counter(), {}
    done, failed, left = [], [], []
    for number, run in enumerate(todo, 1):
        interruption.check()
        if (folder / f"{run.name}.json").exists():  # another process did it meanwhile
            continue
        if 60 * minutes - (time.perf_counter() - began) < took.get((run.kind, run.method), 0):
            left.append(run.name)
            continue
        start = time.perf_counter()
        try:
            result = {results.DIGEST: lab.digest(run.data)}
            result |= items.KINDS[run.kind](lab, run, folder)
            _write(folder / f"{run.name}.json", result, run, time.perf_counter() - start, commit)
            done.append(run.name)
        except items.Waits as missing:
            result = folder / f"{missing}.json"
            if result.exists():  # so that its turn does not come again
                failed.append(run.name)
                print(f"{run.name}: error: the net of {missing} is not in {lab.nets}, though its "
                      f"result is there; delete {result}, and the same command trains it anew",
                      file=sys.stderr, flush=True)  # fmt: skip
                continue
            left.append(run.name)
            print(f"{run.name} waits for {missing}", flush=True)
            continue
        except UserError as error:
            failed.append(run.name)
            print(f"{run.name}: error: {error}", file=sys.stderr, flush=True)
            continue
        except OSError as error:  # a full disk, say, on which no other run could leave its result
            what = f"{run.name}: {folder} or {lab.nets} cannot be written: {{}}"
            raise files.unwritable(what, error) from error
        except Exception:  # one that fails stops no other
            failed.append(run.name)
            traceback.print_exc()
            continue
        seconds = time.perf_counter() - start
        took[run.kind, run.method] = seconds
        print(f"[{number} of {len(todo)}] {run.name}: {seconds:.1f} s", flush=True)
    return done, failed, left


def _write(path: Path, result: dict[str, Any], run: runs.Run, seconds: float, commit) -> None:
    content = {
        "run": run._asdict(), "seconds": round(seconds, 2), **provenance.describe(run.seed),
        **({"commit": commit} if commit else {}), **result,
    }  # fmt: skip
    kept.write(path, kept.strict(content, 6), separators=(",", ":"))


def check_tiles(lab: Lab, todo: list[runs.Run], folder: Path) -> None:
    """Refuses, before the work, to add results of other tiles to those that are there.

    Raises:
      UserError: tiles cannot be read, or a result file of the same name of a set is of others.
    """
    digests = {run.data: lab.digest(run.data) for run in todo}
    for path in sorted(folder.glob("*.json")) if todo else ():
        member = results.read(path)
        data = member["run"]["data"]
        known = member.get(results.DIGEST)  # files of old have none
        if data in digests and known not in (None, digests[data]):
            raise UserError(
                f"--data={data}={lab.places.get(data, data)}: {path} is of other tiles; name "
                "another folder for these by --results, and by --nets"
            )


def read_places(given: list[str]) -> dict[str, str]:
    """Folders by the names of their sets.

    Raises:
      UserError: a part is not NAME=TILES, a name is given twice, or a place is not there.
    """
    pairs = [part.partition("=") for part in given]
    bad = [name for name, _, place in pairs if not (name and place)]
    if bad:
        raise UserError(f"--data: {bad[0]!r} must be NAME=TILES, e.g. buildings=DIR")
    names = [name for name, _, _ in pairs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"--data: {twice[0]!r} is given twice; give one place for each name")
    gone = [f"{name}={place}" for name, _, place in pairs if not expanded(place).exists()]
    if gone:
        raise UserError(f"--data={gone[0]}: there is no such file or folder")
    return {name: place for name, _, place in pairs}


def main(argv: list[str]) -> None:
    """Runs what is missing."""
    args: Any = flags.FLAGS
    scale, places = runs.SCALES[args.scale], read_places(args.data)
    minutes = args.budget_minutes
    if not 0 < minutes < math.inf:
        raise UserError(f"--budget_minutes={minutes:g} must be positive and finite, e.g. 60")
    main_set = scale.main or next(iter(places), None)
    if main_set is None:
        raise UserError(f"--scale={args.scale} needs its tiles: --data=NAME=TILES")
    pattern, folder = (argv[1:] or ["*"])[0], Path(args.results) / args.scale
    found = [r for r in runs.runs(scale, main_set) if fnmatch.fnmatch(r.name, pattern)]
    if not found:
        raise UserError(f"no run has a name like {pattern!r}; names are such as 'embedded_unet_s0'")
    here = [r for r in found if r.data != scale.real or r.data in places]
    if len(here) < len(found):
        print(f"{len(found) - len(here)} runs want --data={scale.real}=TILES and are left out")
    todo = [r for r in here if not (folder / f"{r.name}.json").exists()]
    device = jax.devices()[0].device_kind
    print(
        f"{len(todo)} of {len(here)} runs of scale {args.scale} are to do, on device {device}",
        flush=True,
    )
    program.cache_compilations("~/.cache/tvjax/compiled")
    lab = Lab(scale, places, Path(args.nets) / args.scale)
    if todo:
        files.check_folder("results", folder)
        files.check_folder("nets", lab.nets)
    check_tiles(lab, todo, folder)
    interruption.check()
    done, failed, left = execute(lab, todo, folder, minutes=minutes, commit=args.commit)
    print(f"{len(done)} done, {len(left)} left, {len(failed)} failed {' '.join(failed)}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    define_flags()
    program.run(main, interrupted=75, words=1)
