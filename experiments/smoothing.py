"""What total variation does to a net's probabilities: before and after, on validation tiles.

    python -m tvjax.main --config=configs/unet.py
    python -m experiments.smoothing --workdir=runs/unet --out=results/smoothing.png

Columns: the image, the U-Net's probabilities, the same denoised (U-Net + TV, eq. 3), and the
TV-softmax of the same logits (RU-Net's layer, eq. 7) at the paper's one iteration and converged.
Red is the contour at 0.5. Under each tile: the variation of its mask and its number of components.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from absl import flags

from tvjax import denoise_tv, program, total_variation, tv_softmax
from tvjax.scoring.mask_scores import components
from tvjax.training import figures, restore

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of a U-Net's run, e.g. runs/unet.", required=True
)
_OUT = flags.DEFINE_string("out", None, "PNG file to write, e.g. smoothing.png.", required=True)
_LAMBDA = flags.DEFINE_float("lambda", 0.25, "Weight of TV in both smoothings.")
_TILES = flags.DEFINE_list("tiles", ["0", "1", "2"], "Numbers of validation tiles to draw.")


def smooth(logits: jnp.ndarray, lam: float) -> dict[str, jnp.ndarray]:
    """Probabilities `[B, H, W, 1]` by title, from logits `[B, H, W, 1]`."""
    classes = jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)  # softmax = sigmoid
    before = tv_softmax(classes, 0.0)[..., 1:]
    return {
        "probability": before,
        f"denoise_tv, {lam:g}": denoise_tv(before, lam).image,
        f"tv_softmax, {lam:g}, 1 iteration": tv_softmax(classes, lam)[..., 1:],
        f"tv_softmax, {lam:g}, converged": tv_softmax(classes, lam, num_iterations=None)[..., 1:],
    }


def draw(images: np.ndarray, probabilities: dict[str, jnp.ndarray], path: Path) -> None:
    """One row a tile, one column a way of smoothing."""
    rows, columns = len(images), 1 + len(probabilities)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.1 * columns, 2.35 * rows), squeeze=False, layout="constrained"
    )
    for row, image in zip(axes, images, strict=True):
        row[0].imshow(image)
    axes[0, 0].set_title("image", fontsize=8)
    for column, (title, p) in zip(axes.T[1:], probabilities.items(), strict=True):
        mask = (p > 0.5).astype(jnp.float32)
        variation, number = total_variation(mask), components(np.asarray(mask)[..., 0] > 0)
        column[0].set_title(title, fontsize=8)
        for i, axis in enumerate(column):
            axis.imshow(p[i, ..., 0], cmap="gray", vmin=0, vmax=1)
            axis.contour(p[i, ..., 0], [0.5], colors="red", linewidths=0.8)
            axis.set_xlabel(
                f"TV {variation[i]:.0f}, components {number[i]}", fontsize=7, labelpad=2
            )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figures.save(figure, path)


def main(argv):
    del argv
    config, net, state = restore.open_net(Path(_WORKDIR.value))
    val = restore.open_splits(Path(_WORKDIR.value), config)["val"]
    images = np.stack([val[int(i)]["image"] for i in _TILES.value])
    logits, _ = jax.jit(net.predict)(state, images)
    draw(images, smooth(logits, _LAMBDA.value), Path(_OUT.value))


if __name__ == "__main__":
    program.run(main)
