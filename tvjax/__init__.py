"""Total variation for segmenting compact objects, and exact hypergradients of its weight.

Arrays are `[..., H, W, C]`, probabilities in [0, 1]; losses take logits. Every function is pure and
works under `jit`, `vmap`, `grad` and `jvp`. Importing this loads nothing: a name loads what it
needs when it is first asked for, so that a program starts with what it uses.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvjax import hypergrad, losses
    from tvjax.inference.predictor import Predictor
    from tvjax.losses import binary_cross_entropy, dice, dice_of_probabilities, focal
    from tvjax.scoring.metrics import iou
    from tvjax.tv.rof import denoise_tv
    from tvjax.tv.softmax import tv_softmax
    from tvjax.tv.variation import total_variation

# Of `python -m tvjax...` alone, while Python looks for the program, whose name it sets afterwards.
if sys.argv[:1] == ["-m"] and any(
    before == "-m" and name.partition(".")[0] in ("tvjax", "experiments")
    for before, name in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
):
    from tvjax import interruption

    interruption.end_quietly()

__all__ = [
    "Predictor",
    "binary_cross_entropy",
    "denoise_tv",
    "dice",
    "dice_of_probabilities",
    "focal",
    "hypergrad",
    "iou",
    "losses",
    "total_variation",
    "tv_softmax",
]
_PLACES = {
    "Predictor": "inference.predictor",
    "binary_cross_entropy": "losses",
    "denoise_tv": "tv.rof",
    "dice": "losses",
    "dice_of_probabilities": "losses",
    "focal": "losses",
    "iou": "scoring.metrics",
    "total_variation": "tv.variation",
    "tv_softmax": "tv.softmax",
}
"""The modules of the names that are no modules themselves."""


def __getattr__(name: str) -> Any:
    """Loads a name when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'tvjax' has no attribute {name!r}")
    found = importlib.import_module(f"tvjax.{_PLACES.get(name, name)}")
    globals()[name] = getattr(found, name) if name in _PLACES else found
    return globals()[name]


def __dir__() -> list[str]:
    """All names, those that are loaded later too."""
    return sorted({*globals(), *__all__})
