"""Trains and evaluates: `python -m tvjax.main --config=configs/lunet_bilevel.py`.

The same command again resumes where the last one stopped. In the workdir: `config.json`,
`metrics.jsonl`, `checkpoints/`, `tensorboard/`, `summary.json`, `curves.png`, `predictions.png`,
and `lambda.png` where lambda is learned.
"""

import json
from pathlib import Path

from absl import flags

from tvjax import program
from tvjax.training import cluster, interrupt, loop, parallel, rundir

_CONFIG = program.define_config_flag()
_MULTIHOST = cluster.define_flags()
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, e.g. runs/roofs; default: runs/NAME, NAME being the config's.",
)


def main(argv: list[str]) -> None:
    """Trains, evaluates, writes and prints the summary."""
    del argv
    config = _CONFIG.value.copy_and_resolve_references()
    names = "coordinator", "num_processes", "process_id"
    cluster.join(multihost=_MULTIHOST.value, **{name: flags.FLAGS[name].value for name in names})
    workdir = Path(_WORKDIR.value or Path("runs") / config.name)
    rundir.check_apart(workdir)
    summary = loop.run(config, workdir)
    if not parallel.is_first():
        return
    print(rundir.format_summary(summary, workdir))
    print(json.dumps(summary))


if __name__ == "__main__":
    interrupt.run(main)
