"""Which tiles share a split: given splits, groups by name, map tiles of one ground."""

import csv
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from tvjax.data import builder, given, groups, manifest, map_tiles, records, splits
from tvjax.errors import UserError

TENTHS = (0.8, 0.1, 0.1)


def brute_touching(tiles):
    """Whether closed squares meet, by corners in units of the finest zoom."""
    finest = tiles[:, 0].max()
    side = 2 ** (finest - tiles[:, 0])
    low, high = tiles[:, 1:] * side[:, None], (tiles[:, 1:] + 1) * side[:, None]
    meet = np.all((low[:, None] <= high) & (low <= high[:, None]), axis=-1)
    for k in range(len(tiles)):
        meet |= meet[:, k : k + 1] & meet[k]
    return np.argmax(meet, axis=1)


def test_pieces_of_ground_are_those_of_squares_that_meet():
    rng = np.random.default_rng(0)
    for _ in range(20):
        zooms = rng.integers(4, 8, 40)
        places = rng.integers(0, 16, (40, 2)) * 2 ** (zooms - 4)[:, None]
        tiles = np.column_stack([zooms, places + rng.integers(0, 2 ** (zooms - 4), (2, 40)).T])
        np.testing.assert_array_equal(map_tiles.touching(tiles), brute_touching(tiles))


@pytest.mark.parametrize(
    "names",
    [
        ["16/35210/22801.png", "17/70421/45603.jpg", "map/18/1/2@2x.png"],
        ["town-35210-22801-16.png", "town-70421-45603-17.jpg", "x/b-1-2-18.png"],
        ["town_16_35210_22801.png", "17_70421_45603.jpg", "a1_18_1_2.tif"],
    ],
)
def test_names_of_map_tiles_are_read(names):
    expected = [[16, 35210, 22801], [17, 70421, 45603], [18, 1, 2]]
    np.testing.assert_array_equal(map_tiles.read(names), expected)


@pytest.mark.parametrize(
    "names",
    [
        ["a.png"],
        ["\u0663-1-2.png"],
        ["3/\u0661/2.png"],
        ["1_2_3_town.png"],
        ["18/1/2.png", "b.png"],
        ["31-5-40.png"],
        ["2/9/1.png"],
    ],
)
def test_other_names_are_not(names):
    assert map_tiles.read(names) is None


def square(zoom, left, top, side):
    return [(zoom, left + i, top + j) for i in range(side) for j in range(side)]


def overlapping(tiles, assigned):
    """Pairs of overlapping ground in different splits."""
    for (z, x, y), (lower, i, j) in itertools.product(tiles.tolist(), repeat=2):
        if lower <= z and (x >> (z - lower), y >> (z - lower)) == (i, j):
            yield (z, x, y), (lower, i, j)


def test_villages_apart_stay_whole_and_a_town_is_cut_into_blocks():
    tiles = np.array([
        tile for k in range(12)
        for tile in square(17, 9000 + 8 * k, 5000, 2) + square(18, 18000 + 16 * k, 10000, 4)
    ])  # fmt: skip
    ground = map_tiles.ground(tiles, TENTHS)
    assert "12 pieces" in ground.words
    np.testing.assert_array_equal(ground.labels, map_tiles.touching(tiles))
    town = np.array(square(17, 9000, 5000, 12) + square(18, 18000, 10000, 24))
    assert len(np.unique(map_tiles.touching(town))) == 1
    ground = map_tiles.ground(town, TENTHS)
    assert "blocks of zoom 16" in ground.words and "touches where blocks meet" in ground.words
    for assigned in (splits.draw(ground.labels, TENTHS, seed) for seed in range(2)):
        assert np.all(np.bincount(assigned) >= [500, 50, 50])
        split_of = dict(zip(map(tuple, town.tolist()), assigned.tolist(), strict=True))
        assert all(split_of[a] == split_of[b] for a, b in overlapping(town, assigned))


def test_labels_are_joined():
    one, two = np.array([0, 0, 2, 3, 3, 5]), np.array([9, 8, 8, 7, 6, 6])
    np.testing.assert_array_equal(splits.together(one, two), [0, 0, 0, 3, 3, 3])
    np.testing.assert_array_equal(splits.together(one), [0, 0, 2, 3, 3, 5])
    found = groups.label(["a1_x", "a1_y", "b2_x", "none", "none2"], r"^([ab]\d)_")
    np.testing.assert_array_equal(found, [0, 0, 1, 2, 3])
    nothing = "finds nothing in any name, such as a1_x"
    for pattern, told in (("[", "is no regular expression"), ("z", nothing), ("", nothing)):
        with pytest.raises(UserError, match=f"^--group=.?: {told}"):
            groups.label(["a1_x"], pattern)


def test_a_pattern_that_would_be_sought_for_ever_is_given_up(monkeypatch):
    monkeypatch.setattr(groups, "SECONDS", 1)
    for pattern in ("^(a+)+$", "(a?){40}a{40}$"):
        with pytest.raises(UserError, match=r"--group=.* sought within 1 seconds .* such as aaa"):
            groups.label(["a" * 40 + "!"], pattern)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """24 random tiles `town K / 4` each; 0.png and 1.png are copies."""
    folder, rng = tmp_path_factory.mktemp("named"), np.random.default_rng(0)
    (folder / "images").mkdir()
    images, annotations = [], []
    first = None
    for k in range(24):
        pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        pixels = pixels.repeat(3, axis=0).repeat(3, axis=1)
        first = pixels if k == 0 else first
        name = f"town{k // 4}_{k}.png"
        Image.fromarray(first if k == 1 else pixels).save(folder / "images" / name)
        images.append({"id": k, "file_name": name, "height": 18, "width": 18})
        box = [[2, 2, 12, 2, 12, 12, 2, 12]]
        annotations.append({"id": k, "image_id": k, "segmentation": box})
    for name, kept in {
        "all": range(24),
        "train": range(1, 20),
        "val": (0, 20, 21),
        "test": (22, 23),
    }.items():
        content = {
            "images": [images[k] for k in kept],
            "annotations": [annotations[k] for k in kept],
        }
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def build(source, out, *, annotations="all", **options):
    files = [source / f"{name}.json" for name in annotations.split()]
    places = files if len(files) > 1 else files[0]
    return builder.build(places, source / "images", out, size=6, progress=False, **options)


def table(out):
    with open(out / "splits.csv") as file:
        return list(csv.DictReader(file))


def test_a_table_says_which_tile_is_where_and_gives_the_splits_again(source, tmp_path):
    build(source, tmp_path / "one", seed=3)
    rows = table(tmp_path / "one")
    assert [int(row["id"]) for row in rows] == list(range(24))
    for name in splits.NAMES:
        split = records.open_split(tmp_path / "one", name)
        files = [split[k]["file"] for k in range(len(split))]
        assert files == [row["file"] for row in rows if row["split"] == name]
    assert rows[0]["cluster"] == rows[1]["cluster"] and len({r["cluster"] for r in rows}) == 23
    build(source, tmp_path / "two", seed=7, split_file=tmp_path / "one" / "splits.csv")
    assert table(tmp_path / "two") == rows


def test_groups_stay_together_and_count_as_asked_for(source, tmp_path, monkeypatch):
    content = build(source, tmp_path / "out", group=r"^town\d")
    assert (content["near_duplicate_clusters"], content["clusters"]) == (23, 6)
    where = {}
    for row in table(tmp_path / "out"):
        where.setdefault(row["file"][:5], set()).add(row["split"])
    assert all(len(found) == 1 for found in where.values()) and len(where) == 6
    assert build(source, tmp_path / "out", group=r"^town\d") == content
    for other in ({"group": "town"}, {}, {"group": r"^town\d", "map_tiles": False}):
        with pytest.raises(manifest.Differs, match=r"with (group|map_tiles)="):
            build(source, tmp_path / "out", **other)
    monkeypatch.setattr(builder, "_decode", None)  # it is told before anything is decoded
    with pytest.raises(UserError, match="1 clusters that stay together are too few"):
        build(source, tmp_path / "no", group="town")
    assert not (tmp_path / "no").exists()


def test_three_coco_files_give_the_splits_and_parted_twins_are_told(source, tmp_path, capsys):
    content = build(source, tmp_path / "out", annotations="train val test")
    assert [content["splits"][name]["tiles"] for name in splits.NAMES] == [19, 3, 2]
    warning = capsys.readouterr().err
    assert "warning: the given splits part 1 cluster of near-duplicates: of the 5 tiles" in warning
    assert "of val and test 1 is of a cluster that is in train too" in warning
    assert "; such as town0_1.png (train) and town0_0.png" in warning
    assert {row["file"]: row["split"] for row in table(tmp_path / "out")}["town0_0.png"] == "val"
    assert build(source, tmp_path / "out", annotations="train val test") == content
    with pytest.raises(manifest.Differs, match="with other contents of annotations; name"):
        build(source, tmp_path / "out", annotations="train test val")
    for wrong, told in (
        ({"annotations": "train val"}, "2 annotations"),
        ({"annotations": "train val val"}, r"town0_0\.png: is in .*val\.json and in .*val\.json"),
        ({"annotations": "train val test", "split_file": "x.csv"}, "leave one out"),
    ):
        with pytest.raises(UserError, match=told):
            build(source, tmp_path / "no", **wrong)


def test_trees_of_one_coco_file_are_no_roofs_of_another(source, tmp_path):
    """Numbers of classes differ from file to file where tools number them anew."""
    files = [tmp_path / f"{name}.json" for name in splits.NAMES]
    for number, name, told in (
        (
            1,
            "tree",
            "test.json: category 1 is tree, and in .*train.json roof; give .* name",
        ),
        (7, "tree", r"test.json: has the objects 7 \(tree\), and .*train.json 1 \(roof\); give"),
        (7, "roof", r"test.json: has the objects 7 \(roof\), and .*train.json 1 \(roof\); give"),
        (1, "Roof ", None),
    ):
        for file in files:
            category = (number, name) if file.stem == "test" else (1, "roof")
            content = json.loads((source / file.name).read_text())
            content["categories"] = [dict(zip(("id", "name"), category, strict=True))]
            size = content["images"][0]
            square = [[0, 0, size["width"], 0, size["width"], size["height"], 0, size["height"]]]
            content["annotations"] = [
                {"id": 1, "image_id": size["id"], "category_id": category[0],
                 "segmentation": square}
            ]  # fmt: skip
            file.write_text(json.dumps(content))
        asked = files, source / "images", tmp_path / "out"
        if told is None:
            builder.build(*asked, size=6, progress=False)
            continue
        with pytest.raises(UserError, match=told):
            builder.build(*asked, size=6, progress=False)


@pytest.mark.parametrize(
    "text, told",
    [
        ("town0_0.png,train\n", r"gives no split for town0_1\.png and 22 more"),
        ("town0_0.png,dev\n", "line 1 is 'town0_0.png,dev'.*train, val, test"),
        ("name,split\na,val\na,test\n", "line 3 .*one split"),
        ("name,split\n\nlonely\n", "line 3 is 'lonely'"),
        ("".join(f"town{k // 4}_{k},train\n" for k in range(24)), "no image is in val"),
        (
            "".join(f"town{k // 4}_{k},{'train' if k < 8 else 'val'}\n" for k in range(24))
            + "town0_0.png,test\n",
            r"has town0_0\.png in test and town0_0 in train, which are both town0_0\.png",
        ),
        ("\0\x80", "--split_file="),
        ("", "gives no split"),
    ],
)
def test_a_faulty_file_of_splits_is_one_line(source, tmp_path, text, told):
    (tmp_path / "s.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=told) as error:
        build(source, tmp_path / "out", split_file=tmp_path / "s.csv")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"nowhere\.csv: cannot be read"):
        build(source, tmp_path / "out", split_file=tmp_path / "nowhere.csv")


def test_map_tiles_of_one_ground_share_a_split(source, tmp_path, capsys):
    """Six pairs of neighbours, each with two of their children's."""
    folder = tmp_path / "map"
    (folder / "images").mkdir(parents=True)
    content = json.loads((source / "all.json").read_text())
    names = []
    for k in range(6):
        x = 100 + 10 * k
        names += [f"m-{x}-50-10.png", f"m-{x + 1}-50-10.png", f"m-{2 * x}-100-11.png",
                  f"m-{2 * x + 3}-101-11.png"]  # fmt: skip
    for image, name in zip(
        content["images"], np.random.default_rng(0).permutation(names), strict=True
    ):
        (folder / "images" / name).write_bytes(
            (source / "images" / image["file_name"]).read_bytes()
        )
        image["file_name"] = str(name)
    (folder / "all.json").write_text(json.dumps(content))
    found = build(folder, tmp_path / "out")
    assert "note: map tiles of zoom 10, 11: ground that overlaps or touches stays" in (
        capsys.readouterr().err
    )
    rows, pieces = table(tmp_path / "out"), {}
    for row in rows:
        *_, x, _, zoom = row["file"][:-4].split("-")
        pieces.setdefault((int(x) >> (int(zoom) - 10)) // 10, set()).add(row["split"])
    assert len(pieces) == 6 and all(len(found) == 1 for found in pieces.values())
    assert found["clusters"] < 7
    assert build(folder, tmp_path / "free", map_tiles=False)["clusters"] == 23
    (tmp_path / "s.csv").write_text(
        "".join(f"{row['file']},{splits.NAMES[k % 3]}\n" for k, row in enumerate(rows))
    )
    build(folder, tmp_path / "given", split_file=tmp_path / "s.csv")
    assert " of ground that overlaps or touches: of the 16" in capsys.readouterr().err


def test_leaks_are_counted():
    lines = given.warn(np.array([0, 1, 1, 2, 2]), {"twins": np.array([0, 0, 2, 2, 4])})
    assert (
        len(lines) == 1
        and "part 2 clusters of twins: of the 4 tiles of val and test 1 is" in lines[0]
    )
    # Cluster after cluster counts whole; of near tiles those that are near to one of train.
    pairs = np.array([[0, 1], [1, 0], [1, 2], [2, 1], [2, 2]])
    assert given.warn_near(np.array([0, 1, 1]), pairs[2:], "abc") == []
    (line,) = given.warn_near(np.array([0, 1, 1]), pairs, "abc")
    assert line.startswith("1 of the 2 tiles of val and test lies nearer than --gap to")
    assert line.endswith("; such as a (train) and b")
    assert given.warn(np.array([0, 1, 2]), {"twins": np.arange(3)}) == []


def test_names_of_a_file_of_splits_may_hold_line_ends(tmp_path):
    file = tmp_path / "s.csv"
    file.write_text('name,split\n"a\nb.png",train\nc\u2028d.png,val\ne.png,test\n')
    assert given.read(file) == {"a\nb.png": 0, "c\u2028d.png": 1, "e.png": 2}
