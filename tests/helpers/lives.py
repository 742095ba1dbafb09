"""One run killed again and again at random moments; `test_training_interruptions` runs it.

    python tests/helpers/lives.py TILES FOLDER KILLS
    python tests/helpers/lives.py TILES FOLDER stream  # a run over 100,000 records, and its memory

Each life of the run is a fork of this process, which has imported everything and started nothing:
a life then costs a second or two. Prints one JSON object.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import devices  # noqa: F401  its net, which compiles in a moment

from configs import lunet_bilevel
from tvjax.data import sets
from tvjax.training import loop
from tvjax.training.logs import read_metrics

EVERY, MOST = 4, 12
"""Steps from one save to the next, and those after which a life is killed in any case: on a quick
machine a run would else be over before it was killed as often as asked."""


def config_of(tiles, folder, kills):
    config = lunet_bilevel.get_config()
    config.data.directory, config.data.cache = str(tiles), str(folder / "cache")
    config.model.update(name="pixels", width=2)
    config.hypergrad.update(warmup=2, every=2, batch_size=4)
    config.train.update(steps=12 * kills, batch_size=4, log_every=1)
    config.evaluation.update(every=10**6, batch_size=4, panels=0)
    config.checkpoint.update(every=EVERY, keep=2, keep_best=1)
    return config


def live(config, workdir):
    """Starts a life; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        with (workdir.parent / f"{workdir.name}.log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        loop.run(config, workdir)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def logged(workdir):
    return max((line["step"] for line in read_metrics(workdir)), default=0)


def saved(workdir):
    folders = (workdir / "checkpoints").glob("*")
    return max((int(f.name) for f in folders if f.name.isdigit()), default=0)


def killed(config, workdir, rng):
    """Kills a life at a random moment; the steps done, those saved, and whether in a save."""
    before = logged(workdir)
    child = live(config, workdir)
    if rng.random() < 0.8:  # while it trains; else while it starts
        while logged(workdir) <= saved(workdir) or logged(workdir) == before:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "a life ended by itself"
            time.sleep(0.01)
    end = time.monotonic() + rng.uniform(0, 1)
    while time.monotonic() < end and logged(workdir) < before + MOST:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"a life ended by itself: {status}"
    in_save = any("tmp" in f.name for f in (workdir / "checkpoints").glob("*"))
    return logged(workdir), saved(workdir), in_save


def stream(tiles, folder):
    """An epoch over 100,000 tiles (a few, repeated) of a whole run; bytes held after each tenth."""
    from experiments.benchmarks import input_pipeline  # it defines flags

    config, held, scalars = config_of(tiles, folder, 1), [], loop.Logs.scalars
    config.data.resident, config.train.batch_size = False, 32
    config.train.steps = 100_000 // 32
    config.train.log_every = config.checkpoint.every = config.train.steps // 10

    def note(logs, step, kind, values):
        if kind == "train" and len(held) < 10:
            held.append(input_pipeline.resident_bytes())
        scalars(logs, step, kind, values)

    def open_section(data):
        splits = sets.open_section(data)
        return splits | {"train": input_pipeline.Repeated(splits["train"], 100_000)}

    loop.Logs.scalars, loop.open_section = note, open_section
    loop.run(config, folder / "run")
    print(json.dumps(held))


def main(tiles, folder, kills):
    folder = Path(folder)
    if kills == "stream":
        return stream(tiles, folder)
    config = config_of(tiles, folder, int(kills))
    config.train.steps = 2 * MOST * int(kills)
    for workdir in (folder / "whole", folder / "run"):
        workdir.mkdir(parents=True)
    _, status = os.waitpid(live(config, folder / "whole"), 0)
    assert status == 0, (folder / "whole.log").read_text()[-2000:]
    rng, workdir, moments, last = random.Random(0), folder / "run", [], 0
    for _ in range(int(kills)):
        step, kept, in_save = killed(config, workdir, rng)
        # What was complete stays complete, and no more than an interval is lost.
        assert kept >= last and step - kept <= EVERY, (step, kept, last)
        moments.append((step, kept, in_save))
        last = kept
    _, status = os.waitpid(live(config, workdir), 0)
    assert status == 0, (folder / "run.log").read_text()[-2000:]
    a, b = (json.loads((folder / w / "summary.json").read_text()) for w in ("whole", "run"))
    assert a["parameters_sha256"] == b["parameters_sha256"] and a["lambda"] == b["lambda"]
    assert read_metrics(folder / "whole") == read_metrics(workdir)
    lost = [step - kept for step, kept, _ in moments]
    print(json.dumps({"lost": lost, "in_save": sum(m[2] for m in moments), "last": last}))


if __name__ == "__main__":
    main(*sys.argv[1:])
