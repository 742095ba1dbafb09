"""Nets in PyTorch run over an image tile by tile; imported only where PyTorch is."""

# PyTorch and its peers are no dependency.
# pyright: reportMissingImports=false

from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
import torch

from experiments.benchmarks.torch_unet import TorchUNet, copy_weights
from tvjax.inference import tiles


def twin(params, width: int) -> TorchUNet:
    """Our untrained U-Net with its weights."""
    net = TorchUNet(width)
    copy_weights(params, net)
    return net


def smp_unet() -> torch.nn.Module:
    """segmentation-models-pytorch's U-Net on EfficientNet-lite0, untrained."""
    import segmentation_models_pytorch as smp

    return smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, in_channels=3, classes=1)


def ready(net: torch.nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """`images [B, H, W, 3] in [0, 1] -> probabilities [B, H, W]`, in channels-last memory."""
    net = net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def apply(images: np.ndarray) -> np.ndarray:
        channels_first = torch.from_numpy(images).permute(0, 3, 1, 2)  # a view: channels-last
        return torch.sigmoid(net(channels_first))[:, 0].numpy()

    return apply


def predict(
    path: Path, net: Callable[[np.ndarray], np.ndarray], tiling: tiles.Tiling
) -> np.ndarray:
    """Probabilities `[H, W]` of an image: overlapping tiles with the weights of ours, added up."""
    with rasterio.open(path) as file:
        image = np.moveaxis(file.read(), 0, -1)
    height, width = image.shape[:2]
    rows, columns = (
        tiles.windows(length, tile, tiling.overlap, tiling.reach)
        for length, tile in zip((height, width), tiling.tile, strict=True)
    )
    below, right = (w[-1].start + t for w, t in zip((rows, columns), tiling.tile, strict=True))
    image = np.pad(image, [(0, max(0, below - height)), (0, max(0, right - width)), (0, 0)], "edge")
    found = np.zeros((below, right), np.float32)
    places = [(row, column) for row in rows for column in columns]
    for k in range(0, len(places), tiling.batch):
        group = places[k : k + tiling.batch]
        parts = [
            (slice(r.start, r.start + tiling.tile[0]), slice(c.start, c.start + tiling.tile[1]))
            for r, c in group
        ]
        images = np.stack([image[part] for part in parts]).astype(np.float32) / np.float32(255)
        for (row, column), part, tile in zip(group, parts, net(images), strict=True):
            found[part] += row.weights[:, None] * column.weights[None, :] * tile
    return found[:height, :width]
