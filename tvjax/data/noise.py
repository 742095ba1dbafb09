"""Gaussian noise on images, for the paper's test of robustness."""

import numpy as np


def add_noise(
    images: np.ndarray, sigma: float, *, seed: int | tuple[int, ...], clip: bool = False
) -> np.ndarray:
    """Adds independent Gaussian noise to every channel of every pixel: `v + eps`.

        eps ~ N(0, sigma^2)                                     (the paper's equation 14)

    Args:
      images: float `[..., H, W, C]` in [0, 1].
      sigma: the standard deviation, >= 0, on the scale of `images`.
      seed: an integer, or several (say, of the run and of the batch).
      clip: whether to clip the result to [0, 1]; the paper does not.

    Returns:
      The noisy images, of the same shape and dtype.

    Raises:
      ValueError: `sigma` is negative or the images are not floats.

    Example:
      >>> round(float(add_noise(np.zeros((64, 64, 3)), 0.05, seed=0).std()), 2)
      0.05
    """
    if not sigma >= 0:
        raise ValueError(f"sigma={sigma}: must not be negative")
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images of dtype {images.dtype}: floats in [0, 1] are needed")
    noise = np.random.default_rng(seed).standard_normal(images.shape)
    noisy = (images + sigma * noise).astype(images.dtype)
    return noisy.clip(0, 1) if clip else noisy
