"""Folders, tables and iterables as data sets, and how names become labels."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from seatrial.core.sample import Dataset
from seatrial.data.array_set import ArraySet
from seatrial.data.bad_sample import BadSample
from seatrial.data.files import open_data
from seatrial.data.image_set import ImageSet
from seatrial.data.labels import choose_labels, read_classes_file
from seatrial.errors import BadInput


def _jpeg(shade: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 10, 200)).save(written, "JPEG")
    return written.getvalue()


def _fill(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def _animals(root: Path) -> Path:
    return _fill(
        root,
        {
            "dog/b.jpg": _jpeg(1),
            "dog/a.JPEG": _jpeg(2),
            "cat/deep/x.jpg": _jpeg(3),
            "Bird/y.jpg": _jpeg(4),
            "Bird/.hidden.jpg": b"",
            ".git/objects/z.jpg": b"",
            "__MACOSX/z.jpg": b"",
        },
    )


def test_a_folder_a_class(tmp_path: Path) -> None:
    data = open_data(_animals(tmp_path))
    assert isinstance(data, ImageSet)
    assert isinstance(data, Dataset)
    assert data.name == tmp_path.name
    assert data.ids == ("Bird/y.jpg", "cat/deep/x.jpg", "dog/a.JPEG", "dog/b.jpg")
    assert data.labels == (0, 1, 2, 2)
    assert data.class_names == ("Bird", "cat", "dog")
    assert (data.label_rule, data.bad, data.notes) == ("sorted order", (), ())
    assert [sample.id for sample in data] == list(data.ids)
    assert data[3].encoded == _jpeg(1)


def test_names_of_the_model_come_before_sorted_order(tmp_path: Path) -> None:
    data = open_data(_animals(tmp_path), class_names=["dog", "Cat", "fish", "bird"])
    assert data.label_rule == "class names"
    assert data.labels == (3, 1, 0, 0)
    assert data.class_names == ("dog", "Cat", "fish", "bird")
    # One name that the model does not have: all by sorted order, and the rule says why.
    data = open_data(_animals(tmp_path), class_names=["dog", "cat", "sparrow"])
    assert data.label_rule == "sorted order (2 of 3 names are class names of the model, 'Bird' is not)"


def test_other_files_are_noted_and_a_folder_of_them_is_no_class(tmp_path: Path) -> None:
    _fill(_animals(tmp_path), {"README.md": b"x", "cat/Thumbs.txt": b"x", "annotations/a.xml": b"x"})
    data = open_data(tmp_path)
    assert data.class_names == ("Bird", "cat", "dog")
    assert data.notes == ("3 other files were left out, first 'README.md'",)
    (tmp_path / "ant").mkdir()  # an empty folder keeps its place
    assert open_data(tmp_path).class_names == ("Bird", "ant", "cat", "dog")


def test_a_single_outer_folder_is_entered(tmp_path: Path) -> None:
    _animals(tmp_path / "outer" / "inner")
    data = open_data(tmp_path)
    assert data.ids == open_data(tmp_path / "outer" / "inner").ids
    assert data.digest == open_data(tmp_path / "outer" / "inner").digest
    assert data.notes == ("the data lies in 'outer'", "the data lies in 'inner'")


def test_labels_csv(tmp_path: Path) -> None:
    table = "\ufefffile, Label ,wnid\nim/b.jpg,5,n2\n./im/a.jpg,3,n1\n\nim/gone.jpg,3,n1\n"
    _fill(tmp_path, {"labels.csv": table.encode(), "im/a.jpg": _jpeg(1), "im/b.jpg": _jpeg(2), "im/extra.jpg": b""})
    data = open_data(tmp_path, n_classes=6)
    assert data.ids == ("im/a.jpg", "im/b.jpg")
    assert data.labels == (3, 5)
    assert data.label_rule == "integers"
    assert data.class_names == tuple("012345")
    assert data.bad == (("im/gone.jpg", "no such file"),)
    with pytest.raises(BadInput, match=r"label 5 of '5'.*labels from 0 to 4"):
        open_data(tmp_path, n_classes=5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,label\nim/a.jpg,0\n", "columns file,label"),
        ("", "columns file,label"),
        ("file,label\nim/a.jpg\n", "row 1, without"),
        ("file,label\nim/a.jpg,0\nim/a.jpg,1\n", "'im/a.jpg' twice"),
        ("file,label\nim/a.jpg,0\n./im/a.jpg,1\n", "'im/a.jpg' is there twice"),
        ("file,label\n../a.jpg,0\n", "'../a.jpg'.*within the data"),
        ("file,label\n/etc/passwd,0\n", "within the data"),
        ("file,label\nim/a.jpg,-1\nim/b.jpg,0\n", "label -1"),
        ("file,label\nim/a.jpg,0\nim/b.jpg,99999999\n", "label 99999999"),
        ("file,label\nno/a.jpg,0\nno/b.jpg,1\n", "without a single picture, first 'no/a.jpg': no such file"),
        ("file,label\nim/a.jpg,0\nim/b.jpg,0\n", "one class only, '0'"),
        ("file,label\n" + "x" * 200_000 + ",0\n", "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path, table: str, message: str) -> None:
    _fill(tmp_path, {"labels.csv": table.encode(), "im/a.jpg": _jpeg(1), "im/b.jpg": _jpeg(2)})
    with pytest.raises(BadInput, match=message) as caught:
        open_data(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="UTF-8"):
        open_data(_fill(tmp_path, {"labels.csv": b"\xff\xfe\x00"}))


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="is empty"):
        open_data(tmp_path / "empty")
    with pytest.raises(BadInput, match="no file or folder"):
        open_data(tmp_path / "missing")
    with pytest.raises(BadInput, match="one class only, 'dog'"):
        open_data(_fill(tmp_path / "one", {"dog/a.jpg": _jpeg(1)}))
    with pytest.raises(BadInput, match=r"neither labels\.csv nor folders"):
        open_data(_fill(tmp_path / "flat", {"a.jpg": _jpeg(1)}))
    with pytest.raises(BadInput, match="without a single picture"):
        open_data(_fill(tmp_path / "text", {"dog/a.txt": b"", "cat/b.txt": b""}))
    with pytest.raises(BadInput, match="holds the parts train, val"):
        open_data(_fill(tmp_path / "parts", {"train/cat/a.jpg": b"", "train/dog/a.jpg": b"", "val/cat/a.jpg": b""}))


def test_integer_folders_are_their_values(tmp_path: Path) -> None:
    data = open_data(_fill(tmp_path, {"10/a.jpg": _jpeg(1), "2/a.jpg": _jpeg(2)}))
    assert (data.label_rule, data.labels) == ("integers", (10, 2))
    assert data.class_names[10] == "10"
    with pytest.raises(BadInput, match="label 10"):
        open_data(tmp_path, n_classes=10)


def test_wnid_folders(tmp_path: Path) -> None:
    _fill(tmp_path, {"n01443537/a.jpg": _jpeg(1), "n01440764/a.jpg": _jpeg(2)})
    wnids = ["n01440764", "n01443537", "n01484850"]
    data = open_data(tmp_path, wnids=wnids, class_names=["tench", "goldfish", "shark"])
    assert (data.label_rule, data.labels) == ("wnid", (0, 1))
    assert data.class_names == ("tench", "goldfish", "shark")
    with pytest.raises(BadInput, match="the wnid 'n01443537'"):
        open_data(tmp_path, wnids=["n01440764"])
    # Sorted order would surely be wrong for a part of the classes.
    with pytest.raises(BadInput, match="model of 1000 classes"):
        open_data(tmp_path, n_classes=1000)
    assert open_data(tmp_path, n_classes=2).label_rule == "sorted order"


@pytest.mark.parametrize(
    "text",
    [
        "fish\ncat\ndog\nbird\n",
        "name,label\ncat,1\nBIRD,3\ndog,2\n",
        "cat,1\nbird,3\ndog,2",
        "label,name\n1,cat\n3,bird\n2,dog",
    ],
)
def test_a_classes_file_overrides_the_model(tmp_path: Path, text: str) -> None:
    file = tmp_path / "classes.txt"
    file.write_text(text)
    data = open_data(_animals(tmp_path / "data"), classes_file=file)
    assert data.label_rule == "classes file classes.txt"
    assert data.labels == (3, 1, 2, 2)
    assert data.class_names[1:3] == ("cat", "dog")
    named = open_data(_animals(tmp_path / "data"), classes_file=file, class_names=["bird", "cat", "dog", "eel"])
    assert named.labels == (3, 1, 2, 2)
    with pytest.raises(BadInput, match="label 3 of 'Bird'"):
        open_data(tmp_path / "data", classes_file=file, n_classes=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\ndog\n", "'Bird', which"),
        (b"cat\n\ndog\n", "line 2, is empty"),
        (b"cat\n", "1 classes"),
        (b"", "0 classes"),
        (b"name,label\ncat,one\n", "row 1"),
        (b"cat,1\ndog,-2\n", "label -2"),
        (b"cat,1\ndog,99999999\n", "label 99999999"),
        (b"cat\nCat\nbird\ndog\n", None),
        (b"bird\nbird\ncat\ndog\n", "'Bird', the name of the classes 0 and 1"),
        (b"\xff\xff", "cannot be read"),
    ],
)
def test_classes_files_that_cannot_be_used(tmp_path: Path, content: bytes, message: str | None) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes(content)
    _animals(tmp_path / "data")
    if message is None:  # an exact name wins over one in another case
        assert open_data(tmp_path / "data", classes_file=file).labels == (2, 0, 3, 3)
        return
    with pytest.raises(BadInput, match=message):
        open_data(tmp_path / "data", classes_file=file)
    with pytest.raises(BadInput, match="cannot be read"):
        open_data(tmp_path / "data", classes_file=tmp_path / "missing.txt")


def test_a_synset_list_has_two_names_a_line(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    pairs, names = read_classes_file(file)
    assert names == ("tench, Tinca tinca", "goldfish")
    assert (1, "n01443537") in pairs
    assert choose_labels(["n01443537", "tench, tinca tinca"], classes_file=file).label_of == {
        "n01443537": 1,
        "tench, tinca tinca": 0,
    }
    # Labels that are numbers already are only named by the file.
    found = choose_labels(["0", "1"], classes_file=file)
    assert (found.label_of, found.rule) == ({"0": 0, "1": 1}, "integers, named by words.txt")


def test_subset_without_and_digest(tmp_path: Path) -> None:
    data = open_data(_animals(tmp_path))
    part = data.subset([2, 0, 2])
    assert part.ids == (data.ids[0], data.ids[2])
    assert data.without(["cat/deep/x.jpg", "unknown"]).ids == tuple(i for i in data.ids if i != "cat/deep/x.jpg")
    assert len(data) == 4
    digests = {data.digest, part.digest, data.without(["dog/b.jpg"]).digest}
    assert len(digests) == 3
    assert open_data(tmp_path).digest == data.digest
    relabeled = open_data(tmp_path, class_names=["dog", "cat", "bird"])
    assert relabeled.digest != data.digest
    (tmp_path / "dog" / "b.jpg").write_bytes(_jpeg(99))
    assert open_data(tmp_path).digest != data.digest
    again = pickle.loads(pickle.dumps(data))
    assert again.digest == data.digest
    assert again[0].encoded == data[0].encoded


def test_bytes_are_read_when_asked_for_and_a_lost_file_is_a_bad_sample(tmp_path: Path) -> None:
    data = open_data(_animals(tmp_path))
    (tmp_path / "dog" / "b.jpg").unlink()
    with pytest.raises(BadSample, match="No such file"):
        data[3]
    assert isinstance(data.digest, str)


def test_links_pipes_and_odd_names_do_not_end_a_run(tmp_path: Path) -> None:
    _animals(tmp_path)
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    (tmp_path / "cat" / "nowhere.jpg").symlink_to(tmp_path / "missing.jpg")
    (tmp_path / "cat" / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "cat" / "loop").symlink_to(tmp_path / "cat")
    with open(os.fsencode(tmp_path / "dog") + b"/\xff.jpg", "wb") as file:
        file.write(_jpeg(7))
    data = open_data(tmp_path)
    assert "dog/\\udcff.jpg" in data.ids
    for index, name in enumerate(data.ids):
        name.encode()
        if any(odd in name for odd in ("pipe", "nowhere", "zero")):
            with pytest.raises(BadSample):
                data[index]
        else:
            assert data[index].encoded


def test_too_large_a_file_is_a_bad_sample(tmp_path: Path) -> None:
    _animals(tmp_path)
    with open(tmp_path / "dog" / "large.jpg", "wb") as file:
        file.truncate(2**40)
    data = open_data(tmp_path)
    with pytest.raises(BadSample, match="above the limit of 64"):
        data[list(data.ids).index("dog/large.jpg")]


INPUTS = torch.rand(10, 3, 4, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10) % 3


def test_a_data_loader_and_an_iterable_give_the_same_arrays() -> None:
    loader = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=4)
    data = open_data(loader, n_classes=3)
    assert isinstance(data, ArraySet)
    assert isinstance(data, Dataset)
    assert data.ids[0] == "000000"
    assert data.labels == tuple(LABELS.tolist())
    assert data.class_names == ("0", "1", "2")
    assert data.label_rule == "given"
    np.testing.assert_array_equal(data[7].array, INPUTS[7].numpy())
    single = open_data((x.numpy(), int(y)) for x, y in zip(INPUTS, LABELS))
    assert single.digest == data.digest
    assert open_data(TensorDataset(INPUTS, LABELS), class_names=list("abc")).class_names == ("a", "b", "c")
    assert data.subset([8, 1]).ids == ("000001", "000008")
    assert len(data.without(["000003"])) == 9
    assert data.subset([1]).digest != data.subset([2]).digest
    sample = data[0].array
    assert sample is not None
    sample[:] = 0
    assert data[0].array.max() > 0
    assert open_data(data) is data


def test_uint8_arrays_become_floats_and_the_source_stays_as_it_was() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    data = open_data(zip(pixels, [0, 1, 0, 1]))
    turned = open_data(zip(torch.from_numpy(pixels).permute(0, 3, 1, 2), [0, 1, 0, 1]))
    assert data.digest == turned.digest
    wanted = pixels[2].transpose(2, 0, 1) / np.float32(255)
    assert data[2].array.dtype == np.float32
    np.testing.assert_array_equal(data[2].array, wanted)
    first = data[0].array
    pixels[:] = 0
    np.testing.assert_array_equal(data[0].array, first)


def test_pillow_images_and_bytes_are_kept_as_files() -> None:
    image = Image.new("CMYK", (7, 5), (10, 20, 30, 40))
    for inputs in ([image, image], [_jpeg(1), _jpeg(2)]):
        data = open_data(zip(inputs, [0, 1]))
        assert isinstance(data, ImageSet)
        assert data[1].encoded
    with pytest.raises(BadInput, match="arrays and image files"):
        open_data([(image, 0), (INPUTS[0], 1)])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "gives nothing"),
        ([(INPUTS[0], 0)], "one class only"),
        ([(INPUTS[0] * 4 - 2, 0)], "leave the Normalize out"),
        ([(INPUTS[0] * float("nan"), 0)], "values from"),
        ([(INPUTS[0, :1], 0)], "float32 of shape 1x4x5"),
        ([(INPUTS[0].permute(1, 2, 0), 0)], "float CHW"),
        ([(torch.zeros(3, 0, 0), 0)], "shape 3x0x0"),
        ([(INPUTS[0], 0.5)], "label 0.5"),
        ([(INPUTS[:2], torch.eye(2))], "label tensor"),
        ([(INPUTS[:2], torch.zeros(3))], "2 inputs and 3 labels"),
        ([INPUTS[0]], "item 0 of the data, float32 of shape"),
        ([(INPUTS[0], 0), (INPUTS[1], 7)], "label 7 of sample 1"),
        ([(INPUTS[0], 0), (INPUTS[1], -1)], "label -1"),
        ([(b"", 0)], "one class"),
        (5, "data of type int"),
        ([("a.jpg", 0)], "3 channels"),
    ],
)
def test_iterables_that_cannot_be_used_are_refused(source: object, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        open_data(source, n_classes=3)


def test_shared_pictures_with_a_table(shared: Path) -> None:
    data = open_data(shared / "imagenet_val_800", n_classes=1000)
    assert (len(data), data.label_rule, data.bad) == (800, "integers", ())
    assert len(set(data.labels)) == 548
    words = open_data(shared / "imagenet_val_800", classes_file=shared / "imagenet_synset_words.txt", n_classes=1000)
    assert words.labels == data.labels
    assert words.class_names[0] == "tench, Tinca tinca"
    with pytest.raises(BadInput, match="labels from 0 to 9"):
        open_data(shared / "imagenet_val_800", n_classes=10)
