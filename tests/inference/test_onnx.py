"""Nets as ONNX models, run by onnxruntime, and what Deepness reads of them."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from encoders import tiny as tiny

import tvjax
from tvjax.errors import UserError
from tvjax.inference import onnx_file

NETS = {
    "unet": {},
    "softmax": {"name": "unet", "head": "softmax"},
    "runet": {"name": "unet", "head": "tv_softmax"},
    "encoder": {"name": "unet", "encoder": "tiny"},
    "segnet": {"depth": 2},
}


@pytest.fixture
def onnx():
    return pytest.importorskip("onnx", reason="needs the extra onnx")


@pytest.mark.usefixtures("tiny", "onnx")
@pytest.mark.parametrize("name", [*NETS, pytest.param("segformer", marks=pytest.mark.slow)])
def test_a_model_gives_the_predictor_s_probabilities_for_any_batch(make_predictor, name):
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime, which runs the model")
    predictor = make_predictor(**({"name": name, "width": 4, "depth": 1} | NETS.get(name, {})))
    content = onnx_file.make(predictor, size=64).SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 64, 64]
    assert session.get_outputs()[0].shape == ["batch", 1, 64, 64]
    for batch in (1, 3):
        images = np.random.default_rng(batch).random((batch, 64, 64, 3), np.float32)
        wanted = np.asarray(predictor(images))
        (found,) = session.run(None, {"images": images.transpose(0, 3, 1, 2)})
        spread = wanted.std()  # small of some nets here: what is drawn for them is no training
        assert spread > 1e-4
        np.testing.assert_allclose(found.transpose(0, 2, 3, 1), wanted, rtol=0, atol=spread / 100)


@pytest.mark.usefixtures("onnx")
def test_deepness_finds_what_it_reads(make_predictor):
    predictor = make_predictor("unet", width=4, depth=1)
    model = onnx_file.make(predictor, size=128, batch=1, resolution=0.3)
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [
        1,
        3,
        128,
        128,
    ]
    found = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    assert found.pop("tiles_overlap") in range(10, 51)
    assert found == {
        "model_type": "Segmentor",
        "class_names": {"0": "background", "1": "roof"},
        "resolution": 30.0,
        "tile_size": 128,
        "seg_thresh": 0.5,
        "standardization_mean": [0, 0, 0],
        "standardization_std": [1, 1, 1],
    }
    without = onnx_file.make(predictor, size=64)
    assert "resolution" not in [prop.key for prop in without.metadata_props]


@pytest.mark.usefixtures("onnx")
@pytest.mark.parametrize(
    "fields, told",
    [
        ({"head": "tv_softmax", "head_iterations": None}, "while"),
        ({"dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_what_onnx_cannot_hold_is_named(make_predictor, fields, told):
    with pytest.raises(UserError, match=rf"^onnx: this net .*\(.*{told}.*\)"):
        onnx_file.make(make_predictor("unet", width=4, depth=1, **fields), size=32)


@pytest.mark.usefixtures("onnx")
def test_a_net_that_wants_the_number_of_images_is_told_how_to_fix_it(make_predictor):
    def step(state, images):
        counted = images if images.shape[0] == 2 else images[: int(images.shape[0])]
        return counted, counted[..., :1]

    picky = tvjax.Predictor(make_predictor("unet", width=4, depth=1).state, None, step)
    with pytest.raises(UserError, match=r"^onnx: this net .*; give --batch=1$"):
        onnx_file.make(picky, size=32)
    assert onnx_file.make(picky, size=32, batch=2).graph.node


def test_denoising_a_wrong_size_and_a_missing_package_are_one_line(make_predictor, monkeypatch):
    predictor = make_predictor("unet", width=4, depth=1)
    denoising = tvjax.Predictor.of(_Net(predictor.step), predictor.state, denoise=0.1)
    with pytest.raises(UserError, match=r"denoise=0\.1: .* give 0 "):
        onnx_file.make(denoising, size=32)
    with pytest.raises(UserError, match="augment=True"):
        onnx_file.make(dataclasses.replace(predictor, augment=True), size=32)
    with pytest.raises(UserError, match="size must be at least 1; got 0"):
        onnx_file.make(predictor, size=0)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"^onnx: .*not installed.*\.\[onnx\]"):
        onnx_file.make(predictor, size=32)


class _Net:
    def __init__(self, predict):
        self.predict = predict


def test_the_overlap_of_large_tiles_is_measured_on_smaller_ones(monkeypatch):
    """A net of 483 parameters took 16 GB at 16,384 pixels."""
    shapes = []
    monkeypatch.setattr(
        onnx_file.tiles, "measure_reach", lambda net, shape: shapes.append(shape) or 40
    )
    assert onnx_file._overlap(None, 16384) == 1 and onnx_file._overlap(None, 64) == 50
    assert shapes == [(1, 512, 512, 3), (1, 64, 64, 3)]
