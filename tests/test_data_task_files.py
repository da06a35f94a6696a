"""Maps of classes, texts and questions; data opened by the name of their task."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seatrial.core.truth import IGNORED, Choices, ClassMap, Objects, Tokens
from seatrial.data.bad_sample import BadSample
from seatrial.data.mask_set import open_masks
from seatrial.data.task_files import TASKS, open_task_data
from seatrial.data.text_set import open_questions, open_texts
from seatrial.errors import BadInput

RNG = np.random.default_rng(0)
MAP = RNG.integers(0, 5, (12, 20)).astype(np.uint8)
MAP[0, :7] = IGNORED


def picture(path: Path, size_px: tuple[int, int] = (12, 20), orientation: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(RNG.integers(0, 255, (*size_px, 3), dtype=np.uint8)).save(path, exif=exif)


def drawn(path: Path, numbers: np.ndarray, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(numbers)
    if mode == "P":
        image.putpalette(RNG.integers(0, 255, 768, dtype=np.uint8).tobytes())
    image.save(path)


@pytest.mark.parametrize("mode", ["L", "P", "16"])
@pytest.mark.parametrize(
    "folders", [("images", "masks"), ("JPEGImages", "SegmentationClass"), ("img/val", "label/val")]
)
def test_maps_are_numbers_whatever_their_palette(tmp_path: Path, folders: tuple[str, str], mode: str) -> None:
    for name in ("b", "a"):
        picture(tmp_path / folders[0] / f"{name}.jpg")
        drawn(tmp_path / folders[1] / f"{name}.png", MAP.astype(np.uint16) if mode == "16" else MAP, mode)
    found = open_masks(tmp_path, n_classes=5)
    assert [Path(name).name for name in found.ids] == ["a.jpg", "b.jpg"]
    for sample in found:
        assert isinstance(sample.target, ClassMap)
        np.testing.assert_array_equal(sample.target.classes, MAP)
    assert found.without([found.ids[0]]).ids == found.subset([1]).ids


def test_what_does_not_fit_is_a_bad_sample(tmp_path: Path) -> None:
    for name in "abcde":
        picture(tmp_path / f"images/{name}.jpg", orientation=6 if name == "e" else None)
        drawn(tmp_path / f"masks/{name}.png", MAP)
    drawn(tmp_path / "masks/a.png", MAP[:-1])
    drawn(tmp_path / "masks/b.png", np.full_like(MAP, 9))
    picture(tmp_path / "masks/c.png")
    (tmp_path / "masks/d.png").write_bytes((tmp_path / "masks/d.png").read_bytes()[:60])
    drawn(tmp_path / "masks/e.png", MAP.T.copy())
    picture(tmp_path / "images/x.jpg")
    drawn(tmp_path / "masks/y.png", MAP)
    found = open_masks(tmp_path, n_classes=5)
    assert found.bad == (("images/x.jpg", "no mask of that name"), ("masks/y.png", "no picture of that name"))
    said = (
        "a mask of 20x11 for a picture of 20x12",
        r"class 9 in the mask, the classes are 0 to 4 and 255",
        "a mask of mode RGB in a PNG file",
        "a corrupt mask",
    )
    for index, reason in enumerate(said):
        with pytest.raises(BadSample, match=reason):
            found[index]
    assert found[4].target.classes.shape == (20, 12)  # upright, as the picture is shown


def test_the_digest_knows_pictures_and_maps(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    drawn(tmp_path / "masks/a.png", MAP)
    first = open_masks(tmp_path).digest
    assert open_masks(tmp_path).digest == first
    drawn(tmp_path / "masks/a.png", MAP[::-1].copy())
    second = open_masks(tmp_path).digest
    picture(tmp_path / "images/a.jpg")
    assert len({first, second, open_masks(tmp_path).digest}) == 3


def test_folders_without_maps_and_of_several_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="without pictures in 'images'"):
        open_masks(tmp_path)
    for part in ("train", "val"):
        picture(tmp_path / f"images/{part}/a.jpg")
    with pytest.raises(BadInput, match="without maps in 'masks'"):
        open_masks(tmp_path)
    for part in ("train", "val"):
        drawn(tmp_path / f"masks/{part}/a.png", MAP)
    with pytest.raises(BadInput, match="holds the parts train, val"):
        open_masks(tmp_path)
    assert open_masks(tmp_path / "images" / "val").ids == ("images/a.jpg",)
    picture(tmp_path / "images/val/a.jpeg")
    with pytest.raises(BadInput, match=r"images/a.jpeg and images/a.jpg; wanted a name for each"):
        open_masks(tmp_path / "images" / "val")
    drawn(tmp_path / "o/masks/b.png", MAP)
    picture(tmp_path / "o/images/a.png")
    with pytest.raises(BadInput, match="no mask named like a picture"):
        open_masks(tmp_path / "o")


def letters(text: str) -> list[int]:
    """A tokenizer of one id a letter."""
    return [ord(letter) for letter in text]


def test_a_running_text_is_cut_into_pieces(tmp_path: Path) -> None:
    file = tmp_path / "wiki.txt"
    file.write_text("abcdefgh")
    found = open_texts(file, letters, length=4, begin=1)
    assert [sample.target for sample in found] == [
        Tokens((1, *letters("abc"))),
        Tokens((1, *letters("def"))),
        Tokens((1, *letters("gh"))),
    ]
    assert found.ids == ("000000", "000001", "000002")
    assert [len(sample.target.ids) for sample in open_texts(file, letters, length=7)] == [
        7
    ]  # one alone predicts nothing
    assert found.digest != open_texts(file, letters, length=4, begin=2).digest
    assert found.subset([0, 2]).ids == found.without(["000001"]).ids


def test_rows_of_text_are_cut_off_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"text": "abc"}, {"ids": [1, 7, 8]}, {"ids": [7, 8]}, {"text": "abcdefgh"}]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = open_texts(file, letters, length=5, begin=1)
    assert [sample.target.ids for sample in found] == [
        (1, *letters("abc")),
        (1, 7, 8),
        (1, 7, 8),
        (1, *letters("abcd")),
    ]
    assert found.notes == ("1 texts were cut off after 5 tokens",)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_questions_have_choices_that_go_on_from_them(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"quiz.{ending}"
    if ending == "csv":
        file.write_text('question,A,B,C,answer\n"Sky, day",blue,rot,,A\n2+2,three,four,"fünf",1\n')
    else:
        rows = [
            {"question": "Sky, day", "choices": ["blue", "rot"], "answer": "a"},
            {"question": "2+2", "choices": ["three", "four", "fünf"], "answer": "four"},
        ]
        file.write_text("\n".join(map(json.dumps, rows)))
    found = open_questions(file, letters, length=40, begin=1)
    first, second = (sample.target for sample in found)
    assert first == Choices((1, *letters("Sky, day")), (tuple(letters(" blue")), tuple(letters(" rot"))), (4, 3), 0)
    assert (second.answer, second.lengths) == (1, (5, 4, 5))  # bytes, not letters
    assert found.labels == (0, 1)
    short = open_questions(file, letters, length=10, begin=1)[0].target
    assert short.prompt == (1, *letters(" day"))
    assert open_questions(file, letters, length=10, begin=1).notes == (
        "1 questions were cut off at the front to 10 tokens",
    )


def test_a_choice_begins_where_the_tokens_of_its_question_end(tmp_path: Path) -> None:
    file = tmp_path / "quiz.jsonl"
    file.write_text(json.dumps({"question": "a b", "choices": ["c d", "e"], "answer": 1}))

    def words(text: str) -> list[int]:
        return [ord(word) for word in text.split()]

    found = open_questions(file, words, length=9)[0].target
    assert found == Choices((97, 98), ((99, 100), (101,)), (3, 1), 1)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "x.jsonl, row 2, is damaged"),
        ("[1]", "x.jsonl, row 2, a list"),
        ('{"label": 3}', "row 2, without text or ids"),
        ('{"ids": [1, true]}', "row 2, without text or ids"),
        ('{"ids": [-1, 4]}', "row 2, without text or ids"),
        ('{"text": ""}', "row 2, of 0 tokens"),
    ],
)
def test_a_broken_row_of_text_is_named(tmp_path: Path, row: str, said: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "fine"}\n' + row)
    with pytest.raises(BadInput, match=said):
        open_texts(file, letters, length=9)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "q"}, "row 1, without a question and its choices"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "without a question and its choices"),
        ({"question": "q", "choices": ["a", 3], "answer": 0}, "with a choice that is no text"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "the answer 2; wanted 0 to 1"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "the answer True"),
        ({"question": "q", "choices": ["1", "0"], "answer": "1"}, "the answer '1', which may be choice 0 or 1"),
        ({"question": "", "choices": ["a", "b"], "answer": 0}, "an empty question or choice"),
        ({"question": "q", "choices": ["a", "b" * 20], "answer": 0}, "a choice of 21 tokens"),
    ],
)
def test_a_broken_question_is_named(tmp_path: Path, row: dict, said: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(BadInput, match=said):
        open_questions(file, letters, length=9)


def test_other_files_of_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    for content, said in (
        ("question,answer\nq,1\n", "with the columns 'question,answer'"),
        ("question,A,B,answer\nq,a\n", "row 1, with 2 cells; wanted 4"),
        ("question,A,B,answer\n", "without a question"),
    ):
        file.write_text(content)
        with pytest.raises(BadInput, match=said):
            open_questions(file, letters, length=9)
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\xff")
    for opened in (open_texts, open_questions):
        with pytest.raises(BadInput, match="no file"):
            opened(tmp_path / "y.jsonl", letters, length=9)
        with pytest.raises(BadInput, match="is not UTF-8 text"):
            opened(tmp_path / "x.txt", letters, length=9)
    with pytest.raises(BadInput, match="texts of 1 tokens"):
        open_texts(file, letters, length=1)


def test_each_task_opens_its_data(tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        picture(tmp_path / f"classes/{kind}/a.png")
    picture(tmp_path / "boxes/a.jpg")
    (tmp_path / "boxes/a.txt").write_text("0 0.25 0.25 0.75 0.25 0.75 0.75\n")
    picture(tmp_path / "maps/images/a.jpg")
    drawn(tmp_path / "maps/masks/a.png", MAP)
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "q.jsonl").write_text('{"question": "q", "choices": ["a", "b"], "answer": 0}')
    sources = ("classes", "boxes", "boxes", "maps", "a.txt", "q.jsonl")
    kinds = (type(None), Objects, Objects, ClassMap, Tokens, Choices)
    for task, source, kind in zip(TASKS, sources, kinds, strict=True):
        found = open_task_data(tmp_path / source, task, encode=letters, length=9)
        assert isinstance(found[0].target, kind)
    masked = open_task_data(tmp_path / "boxes", "instance-segmentation")[0].target
    assert masked.runs is not None
    with pytest.raises(BadInput, match=r"unknown task 'detections'; wanted one of: .*did you mean 'detection'"):
        open_task_data(tmp_path, "detections")
    with pytest.raises(BadInput, match="multiple-choice without a tokenizer or a length"):
        open_task_data(tmp_path / "q.jsonl", "multiple-choice")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("a.txt", "0 0.5 0.5 0.2 0.2\n0 0.5 0.5 x 0.2\n", "a.txt, row 2: '0 0.5 0.5 x 0.2'; wanted numbers"),
        ("a.txt", "\n", "without a single object; wanted annotated objects"),
        (
            "a.xml",
            "<annotation><object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object></annotation>",
            r"a.xml, object 1 \('cat'\); wanted numbers xmin",
        ),
        (
            "a.json",
            '{"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 3, "name": "cat"}], "annotations": '
            '[{"id": 8, "image_id": 1, "category_id": 3, "bbox": [1, 1, "5", 5]}]}',
            r"a.json, annotation 1 \(id 8\) with the box \[1, 1, '5', 5\]; wanted x, y, width, height",
        ),
    ],
)
def test_a_broken_object_is_named_by_file_and_row(tmp_path: Path, file: str, content: str, said: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / file).write_text(content)
    with pytest.raises(BadInput, match=said):
        open_task_data(tmp_path, "detection")
