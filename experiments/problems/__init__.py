"""Bilevel problems on which hypergradients are audited, by name.

A problem is a module with `make(seed) -> Setting`; it is imported when it is asked for.
"""

import importlib

from experiments.problems.setting import Setting
from tvjax.errors import UserError

PROBLEMS = ("ridge", "logistic", "tv_denoising", "segmentation")


def make(name: str, seed: int, data: str | None = None) -> Setting:
    """The setting of a name.

    Args:
      name: one of PROBLEMS.
      seed: seed of mini-batches and noise.
      data: tiles, for the problem that takes any.

    Raises:
      ValueError: for a name that is not among PROBLEMS.
      UserError: for data that the problem does not take.
    """
    if name not in PROBLEMS:
        raise ValueError(f"problem must be one of {', '.join(PROBLEMS)}; got {name!r}")
    module = importlib.import_module(f"experiments.problems.{name}")
    if data is None:
        return module.make(seed)
    if name != "segmentation":
        raise UserError(f"data={data!r} is for the problem segmentation; {name} has its own")
    return module.make(seed, data)
