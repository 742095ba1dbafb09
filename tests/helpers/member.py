"""One of two processes of a small run to which something happens; `test_training_cluster` runs it.

python tests/helpers/member.py TILES FOLDER PORT INDEX FAULT STEPS
"""

import errno
import os
import signal
import sys
import time
from pathlib import Path

import lives

from tvjax.errors import exit_with_one_line
from tvjax.training import cluster, loop
from tvjax.training.checkpoint import Checkpoints
from tvjax.training.interrupt import Interrupted, Stop


def struck(index):
    scores, check = loop._scores, Stop.check

    def slowly(stop):
        time.sleep(0.2)
        check(stop)

    def strike(*arguments):
        if index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return scores(*arguments)

    loop._scores, Stop.check = strike, slowly


def slow_to_end(index):
    del index  # the first alone comes there
    cluster.LOST_AFTER, baselines = 8, loop.baselines

    def slowly(*arguments, **options):
        time.sleep(20)
        return baselines(*arguments, **options)

    loop.baselines = slowly


def cannot_read(index):
    read = Checkpoints._read
    if index == 1:
        Checkpoints._read = lambda self, step, like: (
            (None, "stale handle") if step == 12 else read(self, step, like)
        )


def cannot_write(index):
    del index  # the first alone writes
    cluster.LOST_AFTER = 8

    def refuse(workdir, summary):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(workdir / "summary.json"))

    loop.rundir.write_summary = refuse


FAULTS = {
    "struck in the final evaluation": struck,
    "the first takes long to end": slow_to_end,
    "the second cannot read 12": cannot_read,
    "the first cannot write": cannot_write,
    "none": lambda index: None,
}


def main(tiles, folder, port, index, fault, steps):
    FAULTS[fault](int(index))
    cluster.join(
        multihost=True, coordinator=f"localhost:{port}", num_processes=2, process_id=int(index)
    )
    config = lives.config_of(tiles, Path(folder), 1)
    config.hypergrad.method, config.train.steps = "none", int(steps)
    try:
        loop.run(config, Path(folder) / "run")
    except Interrupted as interrupted:
        print(interrupted)
        sys.exit(75)


if __name__ == "__main__":
    exit_with_one_line(main)(*sys.argv[1:])
