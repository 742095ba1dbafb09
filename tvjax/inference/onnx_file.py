"""A trained net as an ONNX model, with what the QGIS plugin Deepness reads of it."""

import inspect
import json
from typing import Any

import flax.linen as nn
import jax
from jax import lax

from tvjax.errors import UserError, require
from tvjax.inference import onnx_graph, tiles
from tvjax.inference.predictor import Predictor, check_export
from tvjax.models.layers import BatchNorm, DepthwiseConv

NAMES = "images", "probabilities"
"""What the model's input and output are called."""

SIZE = 512
"""Side of the images, unless another is asked for: the model's is fixed."""

CLASSES = {"0": "background", "1": "roof"}
"""Deepness takes one probability for two classes."""


def make(
    predictor: Predictor,
    *,
    size: int = SIZE,
    batch: int | None = None,
    resolution: float | None = None,
) -> Any:
    """The `onnx.ModelProto` of a net, from float32 `[B, 3, H, W]` in [0, 1] to `[B, 1, H, W]`.

    The probabilities of the object are those of the predictor, up to rounding.

    Args:
      predictor: a net, without denoising.
      size: height and width of the images, in pixels.
      batch: number of the images; None: any.
      resolution: metres per pixel of the net's tiles, where that is known.

    Raises:
      UserError: the extra `onnx` is not installed, an argument cannot be so, the predictor denoises
        or averages over symmetries, or the net does what ONNX cannot: a TV-softmax that iterates
        until it converges, or bfloat16.
    """
    check_export(size=size, batch=batch, platforms=["cpu"])
    predictor.check_size(size)
    if predictor.denoise is not None:
        raise UserError(
            f"denoise={predictor.denoise}: an ONNX file holds no denoising; give 0 to write it "
            f"without"
        )
    if predictor.augment:
        raise UserError("augment=True: an ONNX file holds the net alone; give augment=False")
    require(
        "onnx", 'onnx: the package is not installed; pip install --editable ".[onnx]" brings it'
    )
    step = inspect.unwrap(predictor.step)  # traced anew, with the layers below

    def net(images: jax.Array) -> jax.Array:
        with nn.intercept_methods(_written_out):
            return step(predictor.state, images.transpose(0, 2, 3, 1))[1].transpose(0, 3, 1, 2)

    try:
        model = onnx_graph.convert(net, (batch or "batch", 3, size, size), NAMES)
    except Exception as error:  # what a net does with an open batch may fail as anything
        first = str(error).strip().partition("\n")[0]
        advice = "" if isinstance(error, onnx_graph.Unsupported) else "; give --batch=1"
        raise UserError(f"onnx: this net cannot be exported so ({first}){advice}") from error
    for key, value in metadata(predictor, size, resolution).items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    return model


def metadata(predictor: Predictor, size: int, resolution: float | None) -> dict[str, Any]:
    """What Deepness reads: how images are cut and scaled, and what the numbers mean.

    Its resolution is in centimetres per pixel, its overlap in percent of a tile's side: as far as
    the net looks around, as in `predict`.
    """
    known = {} if resolution is None else {"resolution": 100 * resolution}
    return known | {
        "model_type": "Segmentor",
        "class_names": CLASSES,
        "tile_size": size,
        "tiles_overlap": _overlap(predictor, size),
        "seg_thresh": 0.5,
        "standardization_mean": [0.0] * 3,  # the net takes [0, 1]
        "standardization_std": [1.0] * 3,
    }


def _overlap(predictor: Predictor, size: int) -> int:
    side = min(size, SIZE)  # what is measured takes memory as its square
    reach = tiles.measure_reach(predictor, (1, side, side, 3))
    return 50 if reach is None else min(50, -(-100 * 2 * reach // size))


def _written_out(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Layers as ONNX has them, in place of the forms that are fast to differentiate."""
    module = context.module
    if isinstance(module, BatchNorm):
        return _affine(module.epsilon, module.variables, *args)
    if isinstance(module, DepthwiseConv):
        return _grouped(module, module.variables["params"], *args)
    return following(*args, **kwargs)


def _affine(epsilon: float, variables: Any, x: jax.Array) -> jax.Array:
    """BatchNorm by the running statistics."""
    given, running = variables["params"], variables["batch_stats"]
    factor = given["scale"] * lax.rsqrt(running["var"] + epsilon)
    shape = (1,) * (x.ndim - 1) + (-1,)
    centred = x - running["mean"].reshape(shape)
    return centred * factor.reshape(shape) + given["bias"].reshape(shape)


def _grouped(module: DepthwiseConv, params: Any, x: jax.Array) -> jax.Array:
    """The depthwise convolution as one operation."""
    y = lax.conv_general_dilated(
        x,
        params["kernel"],
        (module.stride, module.stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )
    return y + params["bias"].reshape(1, 1, 1, -1) if module.use_bias else y
