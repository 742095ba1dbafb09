"""PyTorch's plain LU-Net step, timed; imported only where PyTorch is."""

# PyTorch and its peers are no dependency.
# pyright: reportMissingImports=false

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from experiments.benchmarks.torch_unet import TorchUNet

RATE, LAM = 1e-3, 1e-6


def measure(
    *, width: int, shape: tuple[int, int, int], steps: int, compiled: bool
) -> dict[str, Any]:
    """Milliseconds per step in float32, TF32 and bfloat16 (autocast)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {}
    for precision in ("float32", "TF32", "bfloat16"):
        torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
        torch.backends.cudnn.allow_tf32 = precision != "float32"
        torch.backends.cudnn.benchmark = True
        step = _step(width, shape, device, precision == "bfloat16", compiled)
        found[precision] = 1000 * _median(step, device, steps)
        print(f"PyTorch, {precision}, compiled={compiled}: {found[precision]:.2f} ms", flush=True)
    return {"device": device, "ms_per_step": found}


def _step(
    width: int, shape: tuple[int, int, int], device: str, half: bool, compiled: bool
) -> Callable[[], None]:
    batch, h, w = shape
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((batch, 3, h, w), generator=generator).to(device)
    image = image.contiguous(memory_format=torch.channels_last)
    mask = (image[:, :1] > 0.5).float()
    net = TorchUNet(width).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    adam = torch.optim.Adam(net.parameters(), RATE, fused=device == "cuda")

    def loss():
        with torch.autocast(device, torch.bfloat16, enabled=half):
            logits = net(image)
        logits = logits.float()
        p = torch.sigmoid(logits)
        tv = p.diff(dim=2).abs().sum() + p.diff(dim=3).abs().sum()
        return F.binary_cross_entropy_with_logits(logits, mask) + LAM * tv

    forward = torch.compile(loss) if compiled else loss

    def step() -> None:
        adam.zero_grad()
        forward().backward()
        adam.step()

    return step


def _median(step: Callable[[], None], device: str, steps: int) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        step()
    times = []
    for _ in range(7):
        wait()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        times.append((time.perf_counter() - began) / steps)
    return float(np.median(times))
