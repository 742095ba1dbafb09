"""Result files: what a later call goes on with, and what is refused."""

import json
from functools import partial

import numpy as np
import pytest
from absl import flags
from programs import ROOT

from experiments import kept
from tvjax import files
from tvjax.errors import UserError

RESULTS = ROOT / "results"
LABEL_FAULTS, LEAKAGE = "label_faults/embedded.json", "leakage/embedded/result.json"


def read(lines):
    return [line["score"] for line in lines]


def test_what_is_done_is_read_again_and_another_config_is_refused(tmp_path):
    path, lines = tmp_path / "new" / "a.json", [{"score": 1.0}]
    assert kept.lines(path, {"a": (1,)}, "scores", read) == []
    kept.write(path, {"config": {"a": (1,)}, "scores": lines})
    assert kept.lines(path, {"a": (1,)}, "scores", read) == lines
    with pytest.raises(UserError, match=r"a.json is of another config: a=\[1\], not \[2\]"):
        kept.lines(path, {"a": (2,)}, "scores", read)
    for damaged in ("{}", "[", '{"config": {"a": [1]}, "scores": [{}]}'):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"damaged.*name another --out, or move it away"):
            kept.lines(path, {"a": (1,)}, "scores", read)


def test_of_other_tiles_nothing_is_gone_on_with(tmp_path, capsys):
    path, config = tmp_path / "a.json", {"net": {"width": 2, "new": 1}, kept.DIGEST: "b" * 64}
    kept.write(path, {"config": {"net": {"width": 2}, "old": 0}, "scores": []})
    assert kept.lines(path, config, "scores", read) == []  # what a version lacks binds nobody
    assert "a.json does not tell its tiles" in capsys.readouterr().err
    for beside in ({"config": {kept.DIGEST: "c" * 64}}, {kept.DIGEST: "c" * 64, "config": {}}):
        kept.write(path, {"scores": [], **beside})
        with pytest.raises(UserError, match=r"tiles_sha256='ccc.*not 'bbb.*another --json"):
            kept.lines(path, config, "scores", read, "json")
    kept.write(path, {"scores": [], "mine": 1})
    with pytest.raises(UserError, match="of something else"):
        kept.lines(path, config, "scores", read)


def test_a_folder_is_of_one_config(tmp_path):
    path = tmp_path / "new" / "made_of.json"
    kept.claim(path, {"steps": 3})
    (path.parent / "run").mkdir()
    kept.claim(path, {"steps": 3})
    with pytest.raises(UserError, match=r"made_of.json is of another config: steps=3, not 4"):
        kept.claim(path, {"steps": 4})
    path.unlink()
    with pytest.raises(UserError, match="holds run, which is of something else"):
        kept.claim(path, {"steps": 3})


def test_what_is_there_is_not_replaced(tmp_path, monkeypatch):
    given = flags.FlagValues()
    define = partial(flags.DEFINE_string, flag_values=given)
    monkeypatch.setattr(kept.flags, "DEFINE_string", define)
    path = tmp_path / "a.json"
    assert kept.check_new(path)
    path.write_text("mine")
    with pytest.raises(UserError, match=r"a.json is there already; name another --json"):
        kept.check_new(path)
    kept.json_flag()
    with pytest.raises(UserError, match="is there already"):
        given(["a program", f"--json={path}"])
    with pytest.raises(UserError, match="--only=foo: choose among a, b"):
        kept.chosen(["a", "foo"], ["a", "b"])
    assert kept.chosen(None, {"a": 1}) == ["a"]


def test_a_result_is_json_with_so_many_digits(tmp_path):
    found = {"a": (np.float64(1 / 3), np.inf), "b": {"c": np.int64(2), "d": np.ones(1)}, "e": None}
    strict = kept.strict(found, 3)
    assert strict == {"a": [0.333, None], "b": {"c": 2, "d": [1.0]}, "e": None}
    kept.write(tmp_path / "a.json", strict, separators=(",", ":"))
    assert json.loads((tmp_path / "a.json").read_text()) == strict


def test_a_report_replaces_only_a_report(tmp_path):
    names, title = ("a.md", "a.png"), "Title"
    kept.check_report("out", tmp_path, names, title)
    (tmp_path / "a.png").write_text("mine")
    with pytest.raises(UserError, match=r"holds a.png, .* \(there is no a.md titled 'Title'\)"):
        kept.check_report("out", tmp_path, names, title)
    (tmp_path / "a.md").write_text("# Title\n")
    kept.check_report("out", tmp_path, names, title)


def test_committed_results_are_gone_on_with():
    label, leak = (files.read_object(RESULTS / f) for f in (LABEL_FAULTS, LEAKAGE))
    for file, found, name in ((LABEL_FAULTS, label, "lines"), (LEAKAGE, leak, "scores")):
        now = found["config"] | {"of a later version": 1}
        assert kept.lines(RESULTS / file, now, name, len) == found[name]
    result = RESULTS / "terraces" / "result.json"
    kept.claim(result, {"steps": 400, "boundaries": 4})
    with pytest.raises(UserError, match=r"result.json is of another config: boundaries=4"):
        kept.claim(result, {"steps": 400, "boundaries": 3})


def test_trainings_beside_a_peer_are_of_the_same_tiles_and_minutes(tmp_path):
    from experiments.benchmarks import segmentation_peers as peers

    path, config = tmp_path / "a.json", {"minutes": 4.0, kept.DIGEST: "a"}
    found = peers.begun(path, config)
    assert found == {"steps": {}, "runs": []}
    peers.keep(path, config, found | {"steps": {"smp": 3}})
    assert peers.begun(path, config)["steps"] == {"smp": 3}
    for other in ({"minutes": 6.0}, {kept.DIGEST: "b"}):
        with pytest.raises(UserError, match=f"another config: {next(iter(other))}="):
            peers.begun(path, config | other)
