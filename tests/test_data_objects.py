"""Annotated pictures: three formats, one data set; what is broken is named by file and row."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from seatrial.core.runs import mask_of, runs_of
from seatrial.data.bad_sample import BadSample
from seatrial.data.coco_json import read_coco
from seatrial.data.object_files import open_objects
from seatrial.data.screen import screen
from seatrial.data.voc_xml import read_voc
from seatrial.data.yolo_text import read_yolo
from seatrial.errors import BadInput

SIZE_PX = (40, 80)  # height, width


def jpeg(path: Path, size_px: tuple[int, int] = SIZE_PX, orientation: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 255, (*size_px, 3), dtype=np.uint8))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(path, exif=exif)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def coco(images: list, annotations: list, categories: list | None = None) -> str:
    named = categories or [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": named})


def image(number: int, name: str, **extra: int) -> dict:
    return {"id": number, "file_name": name, **extra}


def box(number: int, owner: int, kind: int, *sides: float, **extra: object) -> dict:
    return {"id": number, "image_id": owner, "category_id": kind, "bbox": list(sides), **extra}


VOC = """<annotation><filename>{file}</filename><size><width>80</width><height>40</height><depth>3</depth></size>
{objects}</annotation>"""
VOC_OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>
<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"""


def voc(file: str, *objects: tuple) -> str:
    keys = ("name", "x1", "y1", "x2", "y2", "difficult")
    return VOC.format(file=file, objects="".join(VOC_OBJECT.format(**dict(zip(keys, (*o, 0)))) for o in objects))


def in_each_format(root: Path) -> dict[str, Path]:
    """The same objects three times: a cat (8,4)-(24,20) and a dog (0,0)-(80,40) in a.jpg, a cat in b.jpg."""
    for name in ("a.jpg", "b.jpg"):
        for folder in ("yolo/images", "coco/val2017", "voc/JPEGImages"):
            jpeg(root / folder / name)
    write(root / "yolo/labels/a.txt", "0 0.2 0.3 0.2 0.4\n1 0.5 0.5 1 1\n")
    write(root / "yolo/labels/b.txt", "0 0.25 0.5 0.5 0.5\n")
    write(root / "yolo/classes.txt", "cat\ndog\n")
    annotations = [box(1, 5, 3, 8, 4, 16, 16), box(2, 5, 9, 0, 0, 80, 40), box(3, 2, 3, 0, 10, 40, 20)]
    images = [image(5, "a.jpg", height=40, width=80), image(2, "b.jpg", height=40, width=80)]
    write(root / "coco/annotations/instances_val2017.json", coco(images, annotations))
    write(root / "voc/Annotations/a.xml", voc("a.jpg", ("cat", 9, 5, 24, 20), ("dog", 1, 1, 80, 40)))
    write(root / "voc/Annotations/b.xml", voc("b.jpg", ("cat", 1, 11, 40, 30)))
    return {"yolo": root / "yolo", "coco": root / "coco", "voc": root / "voc"}


@pytest.mark.parametrize("form", ["yolo", "coco", "voc"])
def test_all_formats_say_the_same(tmp_path: Path, form: str) -> None:
    found = open_objects(in_each_format(tmp_path)[form])
    assert found.class_names == ("cat", "dog")
    assert [Path(name).name for name in found.ids] == ["a.jpg", "b.jpg"]
    a, b = (sample.target for sample in found)
    np.testing.assert_allclose(a.boxes_px, [[8, 4, 24, 20], [0, 0, 80, 40]], atol=1e-9)
    np.testing.assert_allclose(b.boxes_px, [[0, 10, 40, 30]], atol=1e-9)
    assert (a.classes.tolist(), b.classes.tolist()) == ([0, 1], [0])
    np.testing.assert_allclose(a.areas_px, [256, 3200])
    assert not a.crowd.any()
    assert a.runs is None
    assert found.labels == (0, 0)
    with pytest.raises(BadInput, match="with boxes alone"):
        open_objects(in_each_format(tmp_path)[form], masks=True)


def test_the_json_file_itself_may_be_given_and_names_of_the_model_win(tmp_path: Path) -> None:
    file = in_each_format(tmp_path)["coco"] / "annotations/instances_val2017.json"
    model = tuple(f"class {i}" for i in range(80))
    named = (*model[:15], "Cat", "dog", *model[17:])
    found = open_objects(file, class_names=named, n_classes=80)
    assert (found[0].target.classes.tolist(), found.label_rule) == ([15, 16], "class names")
    with pytest.raises(BadInput, match=r"the class 'cat' in .*; wanted classes of the model"):
        open_objects(file, class_names=model)
    with pytest.raises(BadInput, match=r"2 classes in .* for a model of 80 without names"):
        open_objects(file, n_classes=80)
    names = write(tmp_path / "names.csv", "name,label\ndog,0\ncat,1\n")
    assert open_objects(file, classes_file=names)[0].target.classes.tolist() == [1, 0]


def test_a_part_brings_its_labels_along_and_parts_are_not_mixed(tmp_path: Path) -> None:
    for part in ("train", "val"):
        jpeg(tmp_path / "images" / part / "a.jpg")
        write(tmp_path / "labels" / part / "a.txt", "7 0.5 0.5 0.5 0.5\n")
    with pytest.raises(BadInput, match=r"holds the parts train, val; wanted one part; .*images/val"):
        open_objects(tmp_path)
    found = open_objects(tmp_path / "images" / "val", n_classes=80)
    assert found.ids == ("images/a.jpg",)
    assert found[0].target.classes.tolist() == [7]
    with pytest.raises(BadInput, match="label 7"):
        open_objects(tmp_path / "images" / "val", n_classes=5)


def test_what_has_no_partner_is_said(tmp_path: Path) -> None:
    root = in_each_format(tmp_path)
    for form, folder in (("yolo", "images"), ("coco", "val2017"), ("voc", "JPEGImages")):
        jpeg(root[form] / folder / "c.jpg")
        (root[form] / folder / "b.jpg").unlink()
    yolo, of_coco, of_voc = (open_objects(root[form]) for form in ("yolo", "coco", "voc"))
    assert yolo.notes == (
        "1 pictures without a text file hold no objects",
        "1 text files without a picture were left out, first 'labels/b.txt'",
    )
    assert len(yolo[1].target) == 0  # c.jpg
    assert of_coco.bad == (("b.jpg", "no such file"),)
    assert of_coco.notes == ("1 pictures that no annotation names were left out",)
    assert of_voc.bad == (("Annotations/b.xml", "no such picture"),)


def test_boxes_of_a_turned_picture_are_upright(tmp_path: Path) -> None:
    jpeg(tmp_path / "a.jpg", orientation=6)
    write(tmp_path / "a.txt", "0 0.5 0.25 1 0.5\n")
    sample = open_objects(tmp_path)[0]
    assert sample.target.boxes_px.tolist() == [[0, 0, 40, 40]]  # the upper half of 80 rows and 40 columns


def test_the_digest_knows_pictures_and_objects(tmp_path: Path) -> None:
    root = in_each_format(tmp_path)["yolo"]
    first = open_objects(root).digest
    assert open_objects(root).digest == first
    write(root / "labels/b.txt", "1 0.25 0.5 0.5 0.5\n")
    second = open_objects(root).digest
    jpeg(root / "images/b.jpg", (20, 30))
    assert len({first, second, open_objects(root).digest}) == 3
    parts = open_objects(root)
    assert parts.without(["images/a.jpg"]).ids == ("images/b.jpg",)
    assert parts.subset([0]).ids == ("images/a.jpg",)


def test_a_picture_that_does_not_fit_is_a_bad_sample(tmp_path: Path) -> None:
    from seatrial.core.pipeline import Pipeline, Resize

    root = in_each_format(tmp_path)["coco"]
    jpeg(root / "val2017/b.jpg", (30, 30))
    found = open_objects(root)
    with pytest.raises(BadSample, match="30x30 pixels, its annotation says 80x40"):
        found[1]
    good, bad = screen(found, Pipeline((8, 8), Resize(exact_px=(8, 8))), max_bad=0.5)
    assert (good.ids, [name for name, _ in bad]) == (("val2017/a.jpg",), ["val2017/b.jpg"])
    images = [image(1, "a.jpg"), image(2, "b.jpg")]
    write(root / "annotations/instances_val2017.json", coco(images, [box(1, 2, 3, 50, 0, 9, 9)]))
    with pytest.raises(BadSample, match="object 1 from 50,0 to 59,9 outside its 30x30 pixels"):
        open_objects(root)[1]


def test_masks_are_those_of_pycocotools(tmp_path: Path) -> None:
    jpeg(tmp_path / "a.jpg")
    drawn = np.zeros(SIZE_PX, dtype=np.uint8)
    drawn[5:20, 10:60:3] = 1
    packed = coco_mask.encode(np.asfortranarray(drawn))
    shapes = [
        [[8, 4, 30.5, 6, 20, 33.2], [50, 1, 60, 1, 60, 12]],
        {"size": list(SIZE_PX), "counts": packed["counts"].decode()},
        {"size": list(SIZE_PX), "counts": runs_of(drawn.astype(bool)).tolist()},
        [],
    ]
    entries = [
        box(i + 1, 1, 3, 8, 4, 52, 30, segmentation=shape, iscrowd=int(i == 2), area=5 + i)
        for i, shape in enumerate(shapes)
    ]
    file = write(tmp_path / "all.json", coco([image(1, "a.jpg", height=40, width=80)], entries))
    found = open_objects(file, masks=True)[0].target
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(file))
    for number, runs in enumerate(found.runs[:3], start=1):
        np.testing.assert_array_equal(mask_of(runs, SIZE_PX), theirs.annToMask(theirs.anns[number]).astype(bool))
    square = np.zeros(SIZE_PX, dtype=bool)
    square[4:34, 8:60] = True
    np.testing.assert_array_equal(mask_of(found.runs[3], SIZE_PX), square)  # an object without a mask is its box
    assert found.crowd.tolist() == [False, False, True, False]
    assert found.areas_px.tolist() == [5, 6, 7, 8]


def test_outlines_of_yolo_have_boxes_and_masks(tmp_path: Path) -> None:
    jpeg(tmp_path / "a.jpg")
    write(tmp_path / "a.txt", "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n1 0.5 0.5 0.5 0.5\n")
    found = open_objects(tmp_path, masks=True)[0].target
    assert found.boxes_px.tolist() == [[20, 10, 60, 30]] * 2
    square = np.zeros(SIZE_PX, dtype=bool)
    square[10:30, 20:60] = True
    for runs in found.runs:
        np.testing.assert_array_equal(mask_of(runs, SIZE_PX), square)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1\n", "a.txt, row 2: '0 0.5 0.5 0.1'; wanted a class, then 4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9\n", "row 1: .*; wanted a class, then 4 numbers or the 3 or more points"),
        ("\n\n0 5 0.5 0.1 0.1\n", "row 3: .*; wanted shares of the picture"),
        ("0 nan 0.5 0.1 0.1\n", "row 1: .*; wanted shares"),
        ("0 0.5 0.5 0 0.1\n", "row 1: .*; wanted an object with an area"),
        ("cat 0.5 0.5 0.1 0.1\n", "row 1: .*; wanted a class index"),
        ("-1 0.5 0.5 0.1 0.1\n", "row 1: .*; wanted a class index"),
        ("0 a b c d\n", "row 1: .*; wanted numbers"),
    ],
)
def test_a_broken_row_of_yolo_is_named(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_yolo("a.txt", text.encode())


GOOD = [image(1, "a.jpg")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "x.json is damaged"),
        ("[" * 100_000, "x.json is damaged"),
        ("[]", "without lists of images, annotations and categories"),
        (coco([{"id": 1}], []), "x.json, image 1, without id or file_name"),
        (coco([image(1, "a.jpg"), image(1, "b.jpg")], []), "image 2, with the id 1 again"),
        (coco([image(1, "a.jpg"), image(2, "a.jpg")], []), "the picture 'a.jpg' twice"),
        (coco(GOOD, [], [{"id": 1, "name": "x"}, {"id": 2, "name": "x"}]), "the class 'x' twice"),
        (coco(GOOD, [3]), "x.json, annotation 1, a int"),
        (coco(GOOD, [box(7, 1, 3, 0, 0, 1, 1), box(8, 4, 3, 0, 0, 1, 1)]), r"annotation 2 \(id 8\) of image 4"),
        (coco(GOOD, [box(7, 1, 5, 0, 0, 1, 1)]), "of category 5; wanted a listed category"),
        (coco(GOOD, [box(7, 1, 3, 0, 0, 1)]), r"annotation 1 \(id 7\) with the box \[0, 0, 1\]"),
        (coco(GOOD, [box(7, 1, 3, 0, 0, -1, 1)]), "with the box"),
        (coco(GOOD, [box(7, 1, 3, 0, 0, float("nan"), 1)]), "with the box"),
        (coco(GOOD, [box(7, 1, 3, 0, 0, 10**400, 1)]), "with the box"),
        (coco(GOOD, [{"image_id": 1, "category_id": 3}]), "with the box None"),
        (coco(GOOD, [box(7, 1, 3, 0, 0, 1, 1, iscrowd=4)]), "broken iscrowd or area"),
        (coco(GOOD, [box(7, 1, 3, 0, 0, 1, 1, segmentation=[[1, 2, 3, 4]])]), "with a broken mask"),
        (coco(GOOD, [box(7, 1, 3, 0, 0, 1, 1, segmentation={"size": [2, 2], "counts": [1, 2]})]), "a broken mask"),
        (coco(GOOD, [box(7, 1, 3, 0, 0, 1, 1, segmentation={"size": [2, 2], "counts": "zzz"})]), "a broken mask"),
        (coco(GOOD, [box(7, 1, 3, 0, 0, 1, 1, segmentation={"size": [2, 2], "counts": "\u1234"})]), "a broken mask"),
    ],
)
def test_a_broken_entry_of_coco_is_named(content: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_coco("x.json", content.encode())


@pytest.mark.parametrize("seed", range(20))
def test_packed_run_lengths_are_read_as_pycocotools_writes_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 90, 2).tolist())
    drawn = rng.random(shape) < rng.choice([0.02, 0.5, 0.98])
    packed = coco_mask.encode(np.asfortranarray(drawn.astype(np.uint8)))["counts"].decode()
    entry = box(7, 1, 3, 0, 0, 1, 1, segmentation={"size": list(shape), "counts": packed})
    outline = read_coco("x.json", coco(GOOD, [entry]).encode()).marks["a.jpg"].outlines[0]
    assert outline.runs.tolist() == runs_of(drawn).tolist()


BOMB = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;">]>
<annotation><filename>&lol2;</filename></annotation>"""
OUTSIDE = """<?xml version="1.0"?><!DOCTYPE foo [<!ENTITY xxe SYSTEM "file:///etc/hostname">]>
<annotation><filename>&xxe;</filename></annotation>"""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (voc("a.jpg", ("cat", 1, 1, 5, 5), ("", 1, 1, 5, 5)), "x.xml, object 2, without a name"),
        (voc("a.jpg", ("cat", 1, "one", 5, 5)), r"x.xml, object 1 \('cat'\); wanted numbers xmin"),
        (voc("a.jpg", ("cat", 9, 1, 5, 5)), "from 9,1 to 5,5; wanted min before max"),
        ("<annotation><object><name>x</name></object></annotation>", "object 1 .*; wanted numbers"),
        ("<a/>", "with the root <a>"),
        ("<annotation>", "x.xml is damaged"),
        ("", "x.xml is damaged"),
        (BOMB, "with a document type"),
        (BOMB.encode("utf-16"), "with a document type"),
        (OUTSIDE, "with a document type"),
        ("<annotation>" * 100, "nested 33 deep"),
        ("<annotation>" + " " * 2**22 + "</annotation>", "x.xml of 4 MiB"),
    ],
)
def test_broken_and_hostile_sheets_of_voc_are_named(content: str | bytes, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_voc("x.xml", content.encode() if isinstance(content, str) else content)


def test_difficult_objects_of_voc_are_crowds(tmp_path: Path) -> None:
    jpeg(tmp_path / "a.jpg")
    write(tmp_path / "a.xml", voc("", ("cat", 1, 1, 5, 5, 1), ("cat", 1, 1, 5, 5, 0)))
    assert open_objects(tmp_path)[0].target.crowd.tolist() == [True, False]


def test_folders_that_say_nothing_clear_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no file or folder"):
        open_objects(tmp_path / "x")
    with pytest.raises(BadInput, match="without a single picture"):
        open_objects(tmp_path)
    jpeg(tmp_path / "p/a.jpg")
    with pytest.raises(BadInput, match="without annotations; wanted YOLO text, COCO JSON or VOC XML"):
        open_objects(tmp_path)
    write(tmp_path / "p/a.txt", "")
    with pytest.raises(BadInput, match="without a single object"):
        open_objects(tmp_path)
    write(tmp_path / "one.json", coco([image(1, "../a.jpg")], []))
    with pytest.raises(BadInput, match=r"'../a.jpg' in one.json; wanted paths within the data"):
        open_objects(tmp_path)
    write(tmp_path / "one.json", coco([image(1, "b.jpg")], []))
    with pytest.raises(BadInput, match=r"none of the pictures of one\.json"):
        open_objects(tmp_path)
    jpeg(tmp_path / "q/a.jpg")
    write(tmp_path / "one.json", coco([image(1, "a.jpg")], [box(1, 1, 3, 0, 0, 2, 2)]))
    with pytest.raises(BadInput, match=r"which may be p/a.jpg or q/a.jpg"):
        open_objects(tmp_path)
    write(tmp_path / "two.json", "{}")
    with pytest.raises(BadInput, match=r"with 2 JSON files \(one.json, two.json\)"):
        open_objects(tmp_path)
