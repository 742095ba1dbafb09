"""Bilevel problems on which hypergradients are audited, by name.

A problem is a module with `make(seed) -> Setting`; it is imported when it is asked for.
"""

import importlib

from experiments.problems.setting import Setting

PROBLEMS = ("ridge", "logistic", "tv_denoising", "segmentation")


def make(name: str, seed: int) -> Setting:
    """The setting of a name.

    Raises:
      ValueError: for a name that is not among PROBLEMS.
    """
    if name not in PROBLEMS:
        raise ValueError(f"problem must be one of {', '.join(PROBLEMS)}; got {name!r}")
    return importlib.import_module(f"experiments.problems.{name}").make(seed)
