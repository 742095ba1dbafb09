"""Synthetic towns as people have them: a GeoTIFF in metres, and roofs as polygons in degrees."""

import json

import numpy as np
import rasterio
import shapely
from rasterio.features import rasterize
from rasterio.warp import transform

METRES = 0.3
TOP_LEFT = (500_000.0, 5_400_000.0)
UTM, DEGREES = "EPSG:32633", "EPSG:4326"


def roofs(height, width, *, seed=0, every=32):
    """Turned rectangles and L-shapes in metres of the map, none touching: a cell of a grid each."""
    rng = np.random.default_rng(seed)
    found = []
    for top in range(0, height - every, every):
        for left in range(0, width - every, every):
            if rng.random() < 0.25:
                continue
            w, h = rng.uniform(0.3, 0.6, 2) * every
            shape = shapely.box(-w / 2, -h / 2, w / 2, h / 2)
            if rng.random() < 0.4:
                shape = shape - shapely.box(0, 0, w, h)
            shape = shapely.affinity.rotate(shape, rng.uniform(0, 90), origin=(0, 0))
            x, y = left + every / 2, top + every / 2
            found.append(shapely.affinity.translate(shape, x, y))
    # Of pixels to metres, upwards.
    return [shapely.affinity.affine_transform(s, [METRES, 0, 0, -METRES, *TOP_LEFT]) for s in found]


def write_tif(path, height, width, shapes, *, corner=(0, 0), seed=0, **options):
    """A raster of the town from a corner (row and column) on, red where there are roofs."""
    x, y = TOP_LEFT[0] + METRES * corner[1], TOP_LEFT[1] - METRES * corner[0]
    place = rasterio.Affine(METRES, 0, x, 0, -METRES, y)
    mask = rasterize(shapes, (height, width), transform=place) > 0
    noise = np.random.default_rng(seed).integers(0, 50, (3, height, width))
    image = np.where(mask, np.array([250, 60, 60])[:, None, None], noise + 40)
    image[0] = np.where(mask, 250, image[0])
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=3, dtype="uint8",
        transform=place, photometric="RGB", **{"crs": UTM} | options,
    ) as file:  # fmt: skip
        file.write(image.astype(np.uint8))
    return mask


def in_degrees(shape, crs=UTM):
    """A polygon of the map in longitude and latitude."""

    def convert(points):
        return np.stack(transform(crs, DEGREES, *points.T.tolist()), axis=1)

    return shapely.transform(shape, convert)


def write_geojson(path, shapes, *, kinds=("yes",)):
    """A GeoJSON of polygons in degrees with an attribute `building`, and one point."""
    features = [
        {
            "type": "Feature",
            "properties": {"building": kinds[k % len(kinds)], "levels": k % 2},
            "geometry": shapely.geometry.mapping(shape),
        }
        for k, shape in enumerate(shapes)
    ]
    point = {"type": "Point", "coordinates": list(shapes[0].centroid.coords[0])}
    features.append({"type": "Feature", "properties": None, "geometry": point})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
