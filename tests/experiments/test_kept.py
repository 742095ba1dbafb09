"""Result files: what a later call goes on with, and what is refused."""

import json

import numpy as np
import pytest

from experiments import kept
from tvjax.errors import UserError


def read(lines):
    return [line["score"] for line in lines]


def test_what_is_done_is_read_again_and_another_config_is_refused(tmp_path):
    path, lines = tmp_path / "new" / "a.json", [{"score": 1.0}]
    assert kept.lines(path, {"a": (1,)}, "scores", read) == []
    kept.write(path, {"config": {"a": (1,)}, "scores": lines})
    assert kept.lines(path, {"a": (1,)}, "scores", read) == lines
    with pytest.raises(UserError, match="another config"):
        kept.lines(path, {"a": (2,)}, "scores", read)
    for damaged in ("{}", "[", '{"config": {"a": [1]}, "scores": [{}]}'):
        path.write_text(damaged)
        with pytest.raises(UserError, match="damaged"):
            kept.lines(path, {"a": (1,)}, "scores", read)


def test_a_result_is_json_with_so_many_digits(tmp_path):
    found = {"a": (np.float64(1 / 3), np.inf), "b": {"c": np.int64(2), "d": np.ones(1)}, "e": None}
    strict = kept.strict(found, 3)
    assert strict == {"a": [0.333, None], "b": {"c": 2, "d": [1.0]}, "e": None}
    kept.write(tmp_path / "a.json", strict, separators=(",", ":"))
    assert json.loads((tmp_path / "a.json").read_text()) == strict
