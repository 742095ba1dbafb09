"""Runs that learn where objects nearly touch: the loss, and from training to objects."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from programs import use

from configs import unet
from tvjax import losses
from tvjax.data import builder
from tvjax.inference.predictor import Predictor
from tvjax.models.heads import make_head, make_loss, with_contact
from tvjax.training import evaluation, loop, restore

SETTINGS = {"mix": 0.3, "dice_smoothing": 1.0, "focal_gamma": 2.0, "focal_alpha": None}


@pytest.mark.parametrize(
    "name, fit", [("sigmoid", "bce"), ("softmax", "mix"), ("tv_softmax", "focal")]
)
def test_contact_is_one_more_logit_and_adds_its_cross_entropy(name, fit):
    plain = make_head(name=name, num_iterations=3, kind="anisotropic")
    head, lam = with_contact(plain), jnp.float32(0.1)
    keys = jax.random.split(jax.random.key(0))
    logits = jax.random.normal(keys[0], (2, 6, 6, plain.logits + 1))
    masks = jax.random.bernoulli(keys[1], 0.4, (2, 6, 6, 2)).astype(jnp.uint8)
    assert head.logits == plain.logits + 1 and head.channels == plain.channels
    own, roofs = logits[..., :-1], masks[..., :1]
    for part in ("probabilities", "classes", "log_odds"):
        found, wanted = getattr(head, part)(logits, lam), getattr(plain, part)(own, lam)
        np.testing.assert_array_equal(found, wanted)
    wanted = plain.cross_entropy(own, lam, roofs)
    np.testing.assert_array_equal(head.cross_entropy(logits, lam, roofs), wanted)
    loss = make_loss(name=fit, **SETTINGS)
    more = losses.binary_cross_entropy(logits[..., -1:], masks[..., 1:])
    wanted = loss(plain, own, lam, roofs) + more
    np.testing.assert_allclose(loss(head, logits, lam, masks), wanted, rtol=1e-6)


def test_denoising_leaves_contact_alone_and_symmetries_do_not():
    images = jax.random.uniform(jax.random.key(1), (1, 32, 32, 3))

    def top(state, images):  # contact sees whether a row is the first
        return images, images[..., :2].at[:, 0, :, 1].set(1)

    def one(state, images):
        return images, images[..., :1]

    found = Predictor((), 0.1, top, channels=2)(images)
    np.testing.assert_array_equal(found[..., 1], top((), images)[1][..., 1])
    np.testing.assert_array_equal(found[..., :1], Predictor((), 0.1, one)(images))
    mean = Predictor((), None, top, augment=True, channels=2)(images)
    np.testing.assert_allclose(mean[..., 0], images[..., 0], rtol=1e-5)
    wanted = (
        images[0, 1:-1, 0, 1] * 6 / 8 + 2 / 8
    )  # left and right edges are first rows when turned
    np.testing.assert_allclose(mean[0, 1:-1, 0, 1], wanted, rtol=1e-5)


def write_rows(folder, number, size=48):
    """Pictures of red houses side by side with dark walls, as a COCO file."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for k in range(number):
        rng = np.random.default_rng(k)
        picture = np.full((size, size, 3), 90) + rng.normal(0, 8, (size, size, 3))
        top = int(rng.integers(4, 20))
        for left in range(0, size - 8, 12):
            picture[top : top + 16, left : left + 12, :] = (220, 60, 60)
            picture[top : top + 16, max(0, left - 1) : left + 1, :] = 20
            outline = [left, top, left + 12, top, left + 12, top + 16, left, top + 16]
            annotations.append(
                {"id": len(annotations), "image_id": k, "segmentation": [outline], "iscrowd": 0}
            )
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "height": size, "width": size})
    content = {"images": images, "annotations": annotations}
    (folder / "annotation.json").write_text(json.dumps(content))


def test_houses_of_a_row_are_parted_by_a_run_that_learned_to(tmp_path):
    write_rows(tmp_path, 40)
    source = tmp_path / "annotation.json", tmp_path / "images"
    builder.build(*source, tmp_path / "tiles", size=48, boundaries=4, progress=False)
    config = unet.get_config()
    config.data.directory, config.data.boundaries = str(tmp_path / "tiles"), True
    config.model.update(width=8, depth=1)
    config.optimizer.learning_rate = 0.01
    config.train.update(steps=80, batch_size=4)
    run = tmp_path / "run"
    summary = loop.run(config, run)
    assert summary["test_pooled_iou"] > 0.9
    splits = restore.open_splits(run, restore.read_config(run))
    share = np.mean([splits["test"][k]["mask"] for k in range(len(splits["test"]))])
    found = evaluation.baselines(splits["test"], batch_size=4)
    assert found["all_foreground"] == pytest.approx(share)  # of objects alone, not of contact
    both, one = Predictor.load(run, contact=True), Predictor.load(run)
    image = splits["test"][0]["image"]
    assert both(image).shape == (48, 48, 2) and one.channels == 1
    np.testing.assert_array_equal(both(image)[..., :1], one(image))
    assert both.export(size=32, batch=1).out_avals[0].shape == (1, 32, 32, 2)
    scored = use(
        "evaluate", f"--workdir={run}", f"--annotations={source[0]}", f"--images={source[1]}"
    )
    assert scored.returncode == 0, scored.stderr
    report = json.loads(scored.stdout.splitlines()[-1])
    assert report["ap50"] > 0.8
    split = use("evaluate", f"--workdir={run}", "--split=test")
    assert json.loads(split.stdout.splitlines()[-1])["ap50"] > 0.8
    predicted = use("predict", f"--workdir={run}", f"--images={source[1]}", f"--out={tmp_path}/out")
    assert predicted.returncode == 0, predicted.stderr
    content = json.loads(predicted.stdout.splitlines()[-1])
    assert content["objects"] >= 40 * 3
