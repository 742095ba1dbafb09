"""Every field of a config is checked before anything runs, whatever it holds."""

import json
import math

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base, lunet_bilevel
from tvjax import fields
from tvjax.errors import UserError
from tvjax.models.encoders.efficientnet import LITES
from tvjax.training import loop, restore, rundir
from tvjax.training.setup import check_sizes, make_functions, make_setup

SIZE = (16, 16)
WRONG = (
    None, True, 0, -1, 1, 1.5, 10**30, math.nan, math.inf, -math.inf, -0.5, 1e-300, 1e300, "", "x",
    "\0", (), (1.0,), (math.nan,), [], {}, b"x", np.float32(1), 3 + 4j, object(),
)  # fmt: skip


def tiny():
    config = lunet_bilevel.get_config()
    config.model.update(width=1, depth=1)
    return config


def stored(config, name, value):
    """The config with any value in a field, as a damaged config.json has it."""
    content = config.to_dict()
    *sections, key = name.split(".")
    at = content
    for section in sections:
        at = at[section]
    at[key] = value
    return ConfigDict(content)


def test_every_field_has_one_range_and_every_range_a_field():
    assert fields.FIELDS.keys() == dict(fields.flat(base.get_config())).keys()


def test_what_there_is_to_choose_is_what_may_be_chosen():
    """No name of an encoder becomes that of a package to install, but those that there are."""
    encoders = fields.FIELDS["model.encoder"]
    assert all(map(encoders.holds, (None, *LITES))) and len(LITES) == 3
    for name in ("resnet", "efficientnet_lite9", "efficientnet_lite"):
        assert not encoders.holds(name)
    assert not fields.FIELDS["hypergrad.method"].holds("bome")  # trains the net by validation


@pytest.mark.parametrize("name", fields.FIELDS)
def test_a_corrupted_field_is_refused_in_one_line_or_valid(name):
    for value in WRONG:
        config = stored(tiny(), name, value)
        try:
            fields.check(config)
            if type(value) is int and fields.FIELDS[name].holds(0.5):
                config = stored(tiny(), name, float(value))  # Python takes one for the other
            made = make_functions(config, SIZE)
            jax.eval_shape(made.create, 0, made.net.hyper)
            json.dumps(config.to_dict())
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 300
            assert str(error).startswith((name, name.partition(".")[0] + ".")), error


@pytest.mark.parametrize(
    "name, value, allowed",
    [
        ("train.log_every", 0, "an integer of at least 1"),
        ("evaluation.every", 0, "an integer of at least 1"),
        ("checkpoint.every", 0, "an integer of at least 1"),
        ("checkpoint.keep", 0, "an integer of at least 1"),
        ("train.steps", -1, "an integer of at least 0"),
        ("seed", -1, "an integer of at least 0"),
        ("seed", 2**32, "an integer of at least 0"),
        ("data.seed", -1, "an integer of at least 0"),
        ("optimizer.learning_rate", math.nan, "a number of at least 0, and finite"),
        ("optimizer.learning_rate", -0.1, "a number of at least 0, and finite"),
        ("hypergrad.learning_rate", math.inf, "a number of at least 0, and finite"),
        ("optimizer.eps", -1e-8, "a positive number, and finite"),
        ("optimizer.weight_decay", -1.0, "a number of at least 0, and finite"),
        ("optimizer.b1", 1.5, r"a number in \[0, 1\)"),
        ("optimizer.momentum", 1.5, r"a number in \[0, 1\)"),
        ("model.momentum", 1.0, r"a number in \[0, 1\)"),
        ("schedule.final", 2.0, r"a number in \[0, 1\]"),
        ("model.dtype", "int32", "one of float32, bfloat16, or None"),
        ("model.head_kind", "x", "one of anisotropic, isotropic"),
        ("hypergrad.method", "exat", "one of none, exact"),
        ("denoise.kind", "huber", "one of anisotropic, isotropic"),
        ("denoise.weights", (0.1, -0.1), "a tuple, each of it a number of at least 0"),
        ("denoise.weights", 0.1, "a tuple, each of it a number of at least 0"),
        ("loss.train", "mse", "one of bce, dice, focal, mix"),
        ("loss.mix", 1.5, r"a number in \[0, 1\]"),
        ("hypergrad.learn", ("lamda",), "a tuple, each of it one of lambda, learning_rate"),
        ("hypergrad.rates.loss_mix", -1.0, "a number of at least 0, and finite"),
        ("parallel.map", "vmap", "one of pmap, jit"),
        ("train.steps", True, "an integer of at least 0"),
        ("name", "", "a text, and not empty"),
    ],
)
def test_a_wrong_field_says_what_is_allowed(name, value, allowed):
    with pytest.raises(UserError, match=rf"^{name}=.* must be {allowed}"):
        fields.check(stored(tiny(), name, value))


def test_a_config_that_lacks_a_field_or_has_another_is_refused():
    content = tiny().to_dict()
    del content["train"]["steps"]
    with pytest.raises(UserError, match=r"^train\.steps is missing"):
        fields.check(ConfigDict(content))
    with pytest.raises(UserError, match=r"^train\.stpes: there is no such field"):
        fields.check(stored(tiny(), "train.stpes", 3))
    with pytest.raises(UserError, match=r"^model: there is no such field"):
        fields.check(ConfigDict(tiny().to_dict() | {"model": "unet"}))


@pytest.mark.parametrize(
    "name, changes, shape",
    [
        ("regularizer.blocks", {"regularizer.blocks": 17}, SIZE),
        ("model.depth", {"model.depth": 5}, SIZE),
        ("model.depth", {"model.name": "segnet", "model.depth": 5}, (64, 16)),
        ("train.batch_size", {"train.batch_size": 15}, SIZE),
        ("evaluation.batch_size", {"evaluation.batch_size": 15}, SIZE),
        ("hypergrad.batch_size", {"hypergrad.batch_size": 15}, SIZE),
    ],
)
def test_what_does_not_suit_tiles_or_devices_is_refused(name, changes, shape):
    config = tiny()
    config.update_from_flattened_dict(changes)
    layout = make_setup(config, shape).layout
    with pytest.raises(UserError, match=f"^{name}={changes[name]} cannot be"):
        check_sizes(config, layout._replace(devices=layout.devices * 4), shape)


@pytest.mark.parametrize(
    "name, value", [("denoise.kind", "huber"), ("model.depth", 7), ("regularizer.blocks", 65)]
)
def test_a_refused_run_makes_nothing(tmp_path, monkeypatch, name, value):
    monkeypatch.setattr(loop, "open_section", None)
    config = tiny()
    config.data.cache = str(tmp_path / "cache")
    config.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=f"^{name}={value!r}"):
        loop.run(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_run_s_stored_config_is_checked_too(tmp_path):
    rundir.write_config(tmp_path, stored(tiny(), "model.width", "wide"))
    with pytest.raises(UserError, match=r"config.json is damaged.*model\.width='wide'"):
        restore.open_net(tmp_path)
