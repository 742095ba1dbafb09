"""The U-Net in PyTorch, for benchmarks side by side; imported only where PyTorch is."""

# PyTorch and its peers are no dependency.
# pyright: reportMissingImports=false

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

DEPTH = 2


class TorchUNet(nn.Module):
    """`tvjax.models.unet.UNet` in PyTorch, `[B, 3, H, W] -> [B, 1, H, W]`."""

    def __init__(self, width: int):
        super().__init__()
        sizes = [width * 2**i for i in range(DEPTH + 1)]
        inputs = [3, *sizes[:-1]]
        self.down = nn.ModuleList(_block(i, o) for i, o in zip(inputs, sizes, strict=True))
        pairs = list(zip(sizes[:0:-1], sizes[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in pairs)
        self.back = nn.ModuleList(_block(2 * o, o) for _, o in pairs)
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, x):
        """Logits."""
        skips = []
        for i in range(DEPTH):  # higher's copy of a ModuleList knows no slices
            x = self.down[i](x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.down[DEPTH](x)
        for up, block, skip in zip(self.up, self.back, reversed(skips), strict=True):
            x = block(torch.cat([skip, up(x)], 1))
        return self.last(x)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def copy_weights(params, net: TorchUNet) -> None:
    """Ours into PyTorch's, in the order in which both nets use them."""
    convolutions = iter(range(10**6))
    norms = iter(range(10**6))

    def conv(layer):
        ours = params[f"Conv_{next(convolutions)}"]
        layer.weight.data = _tensor(ours["kernel"]).permute(3, 2, 0, 1)
        if layer.bias is not None:
            layer.bias.data = _tensor(ours["bias"])

    def block(layers):
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                conv(layer)
            elif isinstance(layer, nn.BatchNorm2d):
                ours = params[f"BatchNorm_{next(norms)}"]
                layer.weight.data = _tensor(ours["scale"])
                layer.bias.data = _tensor(ours["bias"])

    for layers in net.down:
        block(layers)
    for i, (up, layers) in enumerate(zip(net.up, net.back, strict=True)):
        ours = params[f"Upsample_{i}"]
        # Flax's transposed convolution is a correlation: its taps are mirrored.
        up.weight.data = _tensor(ours["kernel"]).flip(0, 1).permute(2, 3, 0, 1)
        up.bias.data = _tensor(ours["bias"])
        block(layers)
    conv(net.last)


def _tensor(x) -> torch.Tensor:
    return torch.tensor(np.asarray(x))
