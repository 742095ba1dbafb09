"""Audits of estimators over a training: what a file of another call is taken for."""

from types import SimpleNamespace

import pytest

from experiments import hypergradients
from tvjax.errors import UserError


def test_a_file_is_neither_replaced_nor_drawn_if_it_is_of_something_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text('{"records": 3}')
    for problem, figure, words in (
        ("ridge", None, "a.json is there already; name another --json"),
        (None, str(tmp_path / "a.png"), "a.json is damaged or of something else"),
        (None, str(tmp_path), "--figure=.* cannot be written: it is a folder"),
    ):
        args = SimpleNamespace(problem=problem, json=str(path), figure=figure)
        monkeypatch.setattr(hypergradients, "flags", SimpleNamespace(FLAGS=args))
        with pytest.raises(UserError, match=words):
            hypergradients.main([])
    assert path.read_text() == '{"records": 3}' and len(list(tmp_path.iterdir())) == 1
