"""What a config asks for and cannot have beside its other fields."""

import importlib
from pathlib import Path

import pytest
from programs import ROOT

from configs import base, lunet_bilevel
from tvjax import fields
from tvjax.errors import UserError
from tvjax.training import idle
from tvjax.training.plan import make_hyper_plan
from tvjax.training.setup import make_functions
from tvjax.training.steps import Regularizer


def notes(config):
    settings = {name: config.optimizer[name] for name in config.optimizer}
    return list(idle.notes(config, make_hyper_plan(settings, **config.hypergrad)))


def changed(config, changes):
    config.update_from_flattened_dict(changes)
    return config


def test_values_of_the_table_are_those_of_the_base():
    found = dict(fields.flat(base.get_config()))
    for need in idle.NEEDS:
        assert {name: found[name] for name in need.fields} == need.fields


@pytest.mark.parametrize(
    "file", [file.stem for file in sorted(Path(ROOT, "configs").glob("[a-z]*.py"))]
)
def test_no_config_or_preset_asks_for_what_it_cannot_have(file):
    if file == "base":
        assert notes(base.get_config()) == []
        return
    for preset in (None, "paper"):
        config = importlib.import_module(f"configs.{file}").get_config(preset)
        assert notes(config) == [], preset


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer.weight_decay": 0.5}, "optimizer.weight_decay=0.5: without effect, since"),
        ({"optimizer.momentum": 0.9}, "needs optimizer.name='sgd'"),
        ({"loss.focal_gamma": 5.0, "loss.focal_alpha": 0.3}, "focal_gamma=5.0 and loss.focal"),
        ({"hypergrad.steps": 5}, "needs a hypergrad.method of several steps"),
        ({"hypergrad.block": 9}, "needs hypergrad.significance"),
        ({"hypergrad.rates.loss_mix": 0.1}, "needs 'loss_mix' in hypergrad.learn"),
        ({"hypergrad.warmup": 400}, "leave no update in train.steps=400: nothing is learned"),
        ({"hypergrad.method": "reverse", "hypergrad.steps": 5, "hypergrad.warmup": 1,
          "train.steps": 4}, "hypergrad.warmup=1 and hypergrad.steps=5 leave no update"),
        ({"train.steps": 60, "hypergrad.warmup": 20, "hypergrad.significance": 2.0},
         "needs 14 hypergradients before anything moves, and train.steps=60 takes 10"),
        ({"hypergrad.significance": 2.0, "hypergrad.block": 7}, "needs 98 hypergradients"),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_told(changes, words):
    (note,) = notes(changed(lunet_bilevel.get_config(), changes))
    assert note.startswith("note: ") and words in note


def test_what_has_an_effect_is_not_told():
    assert notes(lunet_bilevel.get_config()) == []
    for changes in (
        {"optimizer.name": "adamw", "optimizer.weight_decay": 0.5},
        {"hypergrad.method": "reverse", "hypergrad.steps": 5, "train.steps": 50},
        {"hypergrad.significance": 2.0, "hypergrad.block": 6},  # 90 updates
        {"loss.validation": "mix", "loss.mix": 0.1, "loss.dice_smoothing": 2.0},
    ):
        assert notes(changed(lunet_bilevel.get_config(), changes)) == []


@pytest.mark.parametrize(
    ("place", "head"),
    [("head", "sigmoid"), ("head", "softmax"), ("loss", "tv_softmax"), ("none", "tv_softmax")],
)
def test_tv_acts_where_its_head_is(place, head):
    config = base.get_config()
    config.regularizer.place, config.model.head = place, head
    with pytest.raises(UserError, match=r"needs (model\.head|regularizer\.place)=") as error:
        make_functions(config, (8, 8))
    assert repr(place) in str(error.value) and repr(head) in str(error.value)


def test_a_weight_per_pixel_is_of_losses_that_are_means_over_pixels():
    regularizer = Regularizer("loss", "anisotropic", "sum", "log")
    found = {loss: regularizer.pixel_weight(0.5, (2, 3, 4), loss) for loss in
             ("bce", "focal", "dice", "mix")}  # fmt: skip
    assert found == {"bce": 12.0, "focal": 12.0, "dice": None, "mix": None}
