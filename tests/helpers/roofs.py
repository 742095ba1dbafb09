"""Roofs that are drawn into a georeferenced raster, and their outlines in map coordinates."""

import numpy as np
import rasterio
import shapely

METRES = 0.5
TOP_LEFT = (500_000.0, 5_400_000.0)


def draw_roofs(size, number, seed=0):
    """Bool `[size, size]` and as many `(top, left, bottom, right, courtyard)`, none touching."""
    rng = np.random.default_rng(seed)
    mask, roofs = np.zeros((size, size), bool), []
    cells = size // 40
    for cell in rng.permutation(cells * cells)[:number]:
        top, left = (int(k) * 40 + int(rng.integers(1, 6)) for k in divmod(int(cell), cells))
        height, width = rng.integers(12, 33, 2).tolist()
        has_court = bool(rng.random() < 0.3)
        mask[top : top + height, left : left + width] = True
        if has_court:
            mask[top + 4 : top + height - 4, left + 4 : left + width - 4] = False
        roofs.append((top, left, top + height, left + width, has_court))
    return mask, roofs


def write_raster(path, mask, *, white=255, **options):
    """A georeferenced raster, red where there are roofs, with a fourth band to be ignored."""
    transform = rasterio.Affine(METRES, 0, TOP_LEFT[0], 0, -METRES, TOP_LEFT[1])
    with rasterio.open(
        path, "w", driver="GTiff", height=len(mask), width=mask.shape[1], count=4,
        dtype="uint8" if white == 255 else "uint16", transform=transform, tiled=True,
        compress="deflate", photometric="RGB", **{"crs": "EPSG:32633", "alpha": "no"} | options,
    ) as file:  # fmt: skip
        for band, value in ((1, 255), (2, 40), (3, 40), (4, 200)):
            values = np.where(mask, value, 0 if band == 1 else 90)
            file.write(np.rint(values * (white / 255)).astype(file.dtypes[0]), band)


def expected_outline(roof):
    """The roof in map coordinates."""
    top, left, bottom, right, has_court = roof
    x, y = TOP_LEFT

    def box(t, a, b, c):
        return shapely.box(x + a * METRES, y - b * METRES, x + c * METRES, y - t * METRES)

    outline = box(top, left, bottom, right)
    return (
        outline - box(top + 4, left + 4, bottom - 4, right - 4) if has_court else outline
    ).normalize()
