"""Tar archives: what a good one gives, and what no archive may do."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seatrial.core.pipeline import Pipeline
from seatrial.data import archive
from seatrial.data.bad_sample import BadSample
from seatrial.data.files import open_data
from seatrial.data.load import load
from seatrial.errors import BadInput


def _jpeg(shade: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 10, 200)).save(written, "JPEG")
    return written.getvalue()


FILES = {"cat/a.jpg": _jpeg(1), "cat/b.jpg": _jpeg(2), "dog/a.jpg": _jpeg(3), "cat/._a.jpg": b"AppleDouble"}


def _tar(files: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None, start: str = "") -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as out:
        for name, content in files.items():
            member = tarfile.TarInfo(start + name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
        for member in extra or []:
            out.addfile(member, io.BytesIO(b"\0" * member.size))
    return written.getvalue()


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


PACKERS = {".tar": bytes, ".tar.gz": gzip.compress, ".tar.xz": lzma.compress, ".tar.bz2": bz2.compress}


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("start", ["", "./", "outer/"])
def test_every_kind_of_archive_gives_what_the_folder_gives(tmp_path: Path, ending: str, start: str) -> None:
    packed = _written(tmp_path / f"pets{ending}", PACKERS[ending](_tar(FILES, start=start)))
    folder = tmp_path / "folder"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    data, wanted = open_data(packed), open_data(folder)
    assert (data.name, data.ids, data.labels) == ("pets", wanted.ids, wanted.labels)
    assert data.class_names == wanted.class_names
    assert data.digest == wanted.digest
    assert data[1].encoded == FILES["cat/b.jpg"]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("ending", [".tar", ".tar.xz"])
def test_a_table_in_an_archive(tmp_path: Path, ending: str) -> None:
    table = b"file,label\ncat/a.jpg,4\ndog/a.jpg,2\n"
    for start in ("", "outer/"):
        packed = _tar({**FILES, "labels.csv": table, "README": b""}, start=start)
        data = open_data(_written(tmp_path / f"pets{ending}", PACKERS[ending](packed)))
        assert data.ids == ("cat/a.jpg", "dog/a.jpg")
        assert data.labels == (4, 2)


def test_long_names_and_folders(tmp_path: Path) -> None:
    long = "cat/" + "x" * 300 + ".jpg"
    data = open_data(_written(tmp_path / "a.tar", _tar({**FILES, long: _jpeg(9)}, [_member("ant", tarfile.DIRTYPE)])))
    assert long in data.ids
    assert data.class_names == ("ant", "cat", "dog")


HOSTILE = {
    "absolute": (_member("/etc/cron.d/x"), r"'/etc/cron.d/x' is an absolute path"),
    "drive": (_member("c:\\x.jpg"), "absolute"),
    "climbs": (_member("../../x.jpg"), r"'../../x.jpg' climbs out"),
    "climbs-inside": (_member("cat/../../x.jpg"), "climbs out"),
    "climbs-backslash": (_member("cat\\..\\..\\x.jpg"), "climbs out"),
    "climbs-hidden": (_member(".x/../../y.jpg"), "climbs out"),
    "folder-climbs": (_member("..", tarfile.DIRTYPE), "climbs out"),
    "symlink": (_member("cat/l.jpg", tarfile.SYMTYPE, "/etc/passwd"), "'cat/l.jpg' is a link"),
    "hardlink": (_member("cat/l.jpg", tarfile.LNKTYPE, "cat/a.jpg"), "is a link"),
    "device": (_member("cat/l.jpg", tarfile.CHRTYPE), "special file"),
    "pipe": (_member("cat/l.jpg", tarfile.FIFOTYPE), "special file"),
    "twice": (_member("cat/a.jpg"), "'cat/a.jpg' is there twice"),
}


@pytest.mark.parametrize("ending", [".tar", ".tar.xz"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_members_are_refused_by_name(tmp_path: Path, kind: str, ending: str) -> None:
    member, message = HOSTILE[kind]
    packed = _written(tmp_path / f"x{ending}", PACKERS[ending](_tar(FILES, [member])))
    with pytest.raises(BadInput, match=message) as caught:
        open_data(packed)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [packed.name]


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = _member(name, kind)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("ending", [".tar", ".tar.xz"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_header("cat/a.jpg", 2**40), "bytes; wanted at most 64 MiB"),
        (_header("cat/a.jpg", -512), "bytes; wanted at most 64 MiB|negative"),
        (_header("x", 2**40, tarfile.XHDTYPE), "header of"),
        (_header("x", 2**40, tarfile.GNUTYPE_LONGNAME), "header of"),
        (_header("x", -(2**20), tarfile.XHDTYPE), "header of|cannot be read"),
        (_header("x", 0, tarfile.XHDTYPE) * 5000, "cannot be read"),
        (_tar(FILES)[:1500], "cannot be read"),
        (_tar(FILES)[:700], "cannot be read"),
        (_tar(FILES)[:3000] + b"garbage" * 500, "cannot be read"),
        (b"", "cannot be read|is empty"),
        (b"PK\x03\x04" + b"x" * 2000, "a zip file, as .npz is|cannot be read"),
        (b"\x93NUMPY" + b"x" * 2000, "a NumPy array; wanted a folder or a tar archive|cannot be read"),
        (b"\0" * 10240, "is empty"),
    ],
)
def test_damaged_and_lying_archives_are_refused(tmp_path: Path, content: bytes, message: str, ending: str) -> None:
    packed = _written(tmp_path / f"x{ending}", PACKERS[ending](content))
    with pytest.raises(BadInput, match=message):
        open_data(packed)


@pytest.mark.parametrize("ending", [".tar.gz", ".tar.xz", ".tar.bz2"])
def test_damaged_compression_is_refused(tmp_path: Path, ending: str) -> None:
    content = PACKERS[ending](_tar(FILES))
    for broken in (content[: len(content) // 2], content[:60] + b"\xff" * 40 + content[100:]):
        with pytest.raises(BadInput, match="cannot be read"):
            open_data(_written(tmp_path / f"x{ending}", broken))


def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 2**20)
    members = [_member(f"cat/{i}.jpg", size=2**18) for i in range(8)]
    packed = _written(tmp_path / "x.tar.xz", lzma.compress(_tar(FILES, members)))
    with pytest.raises(BadInput, match="unpack it and give the folder"):
        open_data(packed)
    assert len(open_data(_written(tmp_path / "x.tar", _tar(FILES, members)))) == 11
    monkeypatch.setattr(archive, "MAX_MEMBERS", 5)
    with pytest.raises(BadInput, match="more than 5 members"):
        open_data(tmp_path / "x.tar")


def test_an_archive_that_is_cut_later_gives_bad_samples(tmp_path: Path) -> None:
    packed = _written(tmp_path / "x.tar", _tar(FILES))
    data = open_data(packed)
    packed.write_bytes(packed.read_bytes()[:600])
    with pytest.raises(BadSample, match="ends within"):
        data[2]
    packed.unlink()
    with pytest.raises(BadSample, match="cannot be read"):
        data[2]


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 6 * 512), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
    packed=st.booleans(),
)
def test_a_changed_archive_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]], packed: bool
) -> None:
    content = bytearray(_tar(FILES))
    for place, value in changes:
        content[place : place + len(value)] = value
    path = tmp_path_factory.mktemp("changed") / "x.tar"
    path.write_bytes(gzip.compress(bytes(content), 1) if packed else bytes(content))
    try:
        data = open_data(path)
    except BadInput:
        return
    for index in range(len(data)):
        data[index]


def test_shared_cifar_archive_maps_by_class_names(shared: Path) -> None:
    described = json.loads((shared / "models" / "resnet20_cifar10.json").read_text())
    names = described["labels"].split(": ")[1].split()
    assert len(names) == 10
    turned = names[::-1]
    data = open_data(shared / "cifar10_jpeg_test.tar.xz", class_names=turned, n_classes=10)
    assert (len(data), data.label_rule) == (10_000, "class names")
    assert np.bincount(data.labels).tolist() == [1000] * 10
    assert data.notes == ("the data lies in 'cifar10_jpeg_test'",)
    for index in (0, 4321, 9999):
        sample = data[index]
        assert turned[sample.label] == sample.id.split("/")[0]
        assert load(Pipeline((32, 32)), sample).source_size_px == (32, 32)
