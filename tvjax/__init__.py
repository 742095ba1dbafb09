"""Total variation for segmenting compact objects, and exact hypergradients of its weight.

Arrays are `[..., H, W, C]`, probabilities in [0, 1]; losses take logits. Every function is pure and
works under `jit`, `vmap`, `grad` and `jvp`. Importing this loads jax and optax and nothing heavier.
"""

from typing import TYPE_CHECKING, Any

from tvjax import hypergrad
from tvjax.losses import binary_cross_entropy, dice, dice_of_probabilities, focal
from tvjax.scoring.metrics import iou
from tvjax.tv.rof import denoise_tv
from tvjax.tv.softmax import tv_softmax
from tvjax.tv.variation import total_variation

if TYPE_CHECKING:
    from tvjax.inference.predictor import Predictor

__all__ = [
    "Predictor",
    "binary_cross_entropy",
    "denoise_tv",
    "dice",
    "dice_of_probabilities",
    "focal",
    "hypergrad",
    "iou",
    "total_variation",
    "tv_softmax",
]


def __getattr__(name: str) -> Any:
    """`tvjax.Predictor`, which needs flax and orbax, is loaded when it is first asked for."""
    if name == "Predictor":
        from tvjax.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'tvjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """All names, those that are loaded later too."""
    return sorted({*globals(), *__all__})
