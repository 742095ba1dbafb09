"""The whole way of a user with roofs to map: COCO file, tiles, training, scores, polygons."""

import json

import numpy as np
import pytest
from PIL import Image
from programs import use

from tvjax.inference import polygons

geopandas = pytest.importorskip("geopandas")
shapely = pytest.importorskip("shapely")
rasterio = pytest.importorskip("rasterio")
from roofs import draw_roofs, expected_outline, write_raster  # noqa: E402


def write_coco(folder, *, images=40, size=120, category=100):
    """Pictures like the raster of `write_raster`, with noise; roofs as run-length codes."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    records, annotations = [], []
    for number in range(1, images + 1):
        mask, _ = draw_roofs(size, int(rng.integers(2, 7)), seed=number)
        picture = np.where(mask[..., None], (255, 40, 40), (0, 90, 90))
        picture = np.clip(picture + rng.normal(0, 20, picture.shape), 0, 255).astype(np.uint8)
        name = f"{number}.png"
        Image.fromarray(picture).save(folder / "images" / name)
        records.append({"id": number, "file_name": name, "height": size, "width": size})
        for polygon in polygons.trace([mask.astype(float)]):
            result = polygons.coco_result(polygon, size, size, number, category)
            annotations.append(result | {"id": len(annotations) + 1, "iscrowd": 0})
    categories = [{"id": category, "name": "roof"}]
    content = {"images": records, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(content))


def last_line(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_from_a_coco_file_to_polygons_on_the_map(tmp_path):
    write_coco(tmp_path)
    coco = f"--annotations={tmp_path}/coco.json", f"--images={tmp_path}/images"
    assert use("data.prepare", *coco, f"--out={tmp_path}/tiles", "--size=60").returncode == 0
    workdir = f"--workdir={tmp_path}/run"
    summary = last_line(use(
        "main", "--config=configs/lunet_bilevel.py", workdir,
        f"--config.data.directory={tmp_path}/tiles", f"--config.data.cache={tmp_path}/cache",
        "--config.train.steps=80", "--config.train.batch_size=4", "--config.model.width=4",
        "--config.model.depth=1", "--config.optimizer.learning_rate=0.02",
        "--config.hypergrad.warmup=20", "--config.hypergrad.batch_size=4",
        "--config.evaluation.every=80",
    ))  # fmt: skip
    assert summary["test_iou"] > 0.8, summary
    scores = last_line(use("evaluate", workdir, *coco, "--scale=0.5", f"--out={tmp_path}/scores"))
    assert scores["iou"] > 0.8 and scores["ap50"] > 0.8 and scores["images"] == 40
    for result in json.loads((tmp_path / "scores" / "results.json").read_text()):
        assert result["category_id"] == 100

    # Without the flag both programs say which one the images need that the tiles were made of.
    paths = f"--images={tmp_path}/images/1.png", f"--out={tmp_path}/unscaled"
    for result in (use("evaluate", workdir, *coco), use("predict", workdir, *paths)):
        assert result.returncode == 0 and "give --scale=0.5 " in result.stderr, result.stderr

    mask, roofs = draw_roofs(600, 90)
    write_raster(tmp_path / "town.tif", mask)
    flags = workdir, f"--images={tmp_path}/town.tif", "--scale=0.5", "--tile=128", "--category=100"
    numbers = last_line(use("predict", *flags, "--simplify=1", f"--out={tmp_path}/out"))
    found = geopandas.read_file(tmp_path / "out" / "town.geojson")
    assert len(found) == numbers["objects"] and found.crs.to_epsg() == 32633
    assert found.is_valid.all()
    shapes = np.array(found.geometry)
    for roof_at in roofs:
        roof, has_court = expected_outline(roof_at), roof_at[-1]
        common = shapely.area(shapely.intersection(shapes, roof))
        # A wall of 4 pixels round a court is 2 of the net's, or 1 and two that are half covered.
        least = 0.5 if has_court else 0.6
        assert np.max(common / shapely.area(shapely.union(shapes, roof))) > least, roof
    plain = last_line(use("predict", *flags, "--denoise=0", f"--out={tmp_path}/plain"))
    exact = geopandas.read_file(tmp_path / "plain" / "town.geojson")
    assert plain["objects"] == numbers["objects"]
    assert found.count_coordinates().sum() < exact.count_coordinates().sum()
    # As much denoising as leaves nothing but the mean of each tile: no roof.
    flat = last_line(use("predict", *flags, "--denoise=1000", f"--out={tmp_path}/flat"))
    assert flat["objects"] == 0
