"""Published corrupted sets: folders as in ImageNet-C, arrays as in CIFAR-10-C."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seatrial.core.sample import Dataset
from seatrial.data.array_set import ArraySet
from seatrial.data.corrupted_set import corrupted_parts, open_corrupted
from seatrial.data.image_set import ImageSet
from seatrial.errors import BadInput


def _jpeg(shade: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(written, "JPEG")
    return written.getvalue()


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    root = tmp_path / "ImageNet-C"
    for severity in (1, 2, 3, 4, 5):
        for kind in ("fog", "blur/zoom_blur"):
            for number, wnid in enumerate(("n01440764", "n01443537")):
                file = root / kind / str(severity) / wnid / "ILSVRC2012_val_00000001.JPEG"
                file.parent.mkdir(parents=True)
                file.write_bytes(_jpeg(40 * severity + number))
    return root


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    root = tmp_path / "CIFAR-10-C"
    root.mkdir()
    rng = np.random.default_rng(0)
    for name in ("fog", "jpeg_compression"):
        np.save(root / f"{name}.npy", rng.integers(0, 256, (35, 32, 32, 3), dtype=np.uint8))
    np.save(root / "labels.npy", np.tile(np.array([3, 8, 8, 0, 6, 6, 1], dtype=np.uint8), 5))
    return root


def test_folders_are_read_by_corruption_and_severity(folders: Path) -> None:
    assert corrupted_parts(folders) == {"fog": (1, 2, 3, 4, 5), "zoom_blur": (1, 2, 3, 4, 5)}
    for corruption in ("fog", "zoom_blur"):
        for severity in (1, 5):
            data = open_corrupted(folders, corruption, severity, wnids=["n00000001", "n01440764", "n01443537"])
            assert isinstance(data, ImageSet)
            assert isinstance(data, Dataset)
            assert data.name == f"ImageNet-C/{corruption}/{severity}"
            assert data.labels == (1, 2)
            assert data.ids[0] == "n01440764/ILSVRC2012_val_00000001.JPEG"
            decoded = [np.asarray(Image.open(io.BytesIO(sample.encoded or b""))) for sample in data]
            assert [int(picture[0, 0, 0]) for picture in decoded] == [40 * severity, 40 * severity + 1]


def test_arrays_are_five_blocks(arrays: Path) -> None:
    assert set(corrupted_parts(arrays)) == {"fog", "jpeg_compression"}
    whole = np.load(arrays / "fog.npy")
    digests = set()
    for severity in (1, 2, 3, 4, 5):
        data = open_corrupted(arrays, "fog", severity, n_classes=10)
        assert isinstance(data, ArraySet)
        assert isinstance(data, Dataset)
        assert data.name == f"CIFAR-10-C/fog/{severity}"
        assert data.labels == (3, 8, 8, 0, 6, 6, 1)
        assert data.class_names == tuple(map(str, range(10)))
        assert data.ids[:2] == ("000000", "000001")
        for position, sample in enumerate(data):
            expected = whole[7 * (severity - 1) + position].transpose(2, 0, 1) / np.float32(255)
            assert sample.array is not None
            assert np.array_equal(sample.array, expected)
        digests.add(data.digest)
    assert len(digests) == 5


def test_one_block_of_labels_serves_all(arrays: Path) -> None:
    np.save(arrays / "labels.npy", np.array([3, 8, 8, 0, 6, 6, 1]))
    assert open_corrupted(arrays, "fog", 4).labels == (3, 8, 8, 0, 6, 6, 1)


def test_memory_stays_bounded(arrays: Path) -> None:
    """The array of 1.5 GB is a file with a hole: mapped it costs nothing, read it would be seen at once."""
    psutil = pytest.importorskip("psutil")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (500_000, 32, 32, 3)}
    )
    with open(arrays / "snow.npy", "wb") as file:
        file.write(header.getvalue())
        file.truncate(len(header.getvalue()) + 500_000 * 32 * 32 * 3)
    np.save(arrays / "labels.npy", np.arange(500_000) % 10)
    process = psutil.Process(os.getpid())
    before = process.memory_info().rss
    data = open_corrupted(arrays, "snow", 5)
    assert len(data) == 100_000
    assert float(data[99_999].array.max()) == 0  # type: ignore[union-attr]
    assert process.memory_info().rss - before < 200 * 2**20


def test_nothing_changes_the_file(arrays: Path) -> None:
    data = open_corrupted(arrays, "fog", 1)
    assert isinstance(data, ArraySet)
    with pytest.raises(ValueError, match="read-only"):
        data.stored[0][:] = 0
    sample = data[0]
    assert sample.array is not None
    sample.array[:] = 7
    assert data[0].array is not None
    assert float(data[0].array.max()) <= 1  # type: ignore[union-attr]


def test_what_is_missing_is_named(folders: Path, arrays: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"unknown corruption 'forg'.*fog, zoom_blur.*did you mean 'fog'"):
        open_corrupted(folders, "forg", 1)
    with pytest.raises(BadInput, match="one of: fog, jpeg_compression"):
        open_corrupted(arrays, "labels", 1)
    for severity in (0, 6, True):
        with pytest.raises(BadInput, match="severity"):
            open_corrupted(arrays, "fog", severity)
    for file in (folders / "fog" / "3").rglob("*.JPEG"):
        file.unlink()
    for folder in sorted((folders / "fog" / "3").rglob("*"), reverse=True):
        folder.rmdir()
    (folders / "fog" / "3").rmdir()
    with pytest.raises(BadInput, match=r"severity 3 of 'fog' .* one of: 1, 2, 4, 5"):
        open_corrupted(folders, "fog", 3)
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(BadInput, match="without a corruption"):
            corrupted_parts(root)


def test_other_arrays_are_refused(arrays: Path) -> None:
    good = np.load(arrays / "fog.npy")
    for bad, said in [
        (good[:34], "five blocks"),
        (good.astype(np.float32), "uint8"),
        (good[..., :2], "RGB"),
        (good[:0], "uint8"),
        (good[:30], "a label a picture"),
    ]:
        np.save(arrays / "bad.npy", bad)
        with pytest.raises(BadInput, match=said):
            open_corrupted(arrays, "bad", 1)
    np.save(arrays / "labels.npy", np.full(35, 10))
    with pytest.raises(BadInput, match="label 10"):
        open_corrupted(arrays, "fog", 1, n_classes=10)
    np.save(arrays / "labels.npy", np.full((35, 10), 0.1))
    with pytest.raises(BadInput, match="integer labels"):
        open_corrupted(arrays, "fog", 1)


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("was-run",)


def test_pickles_and_broken_files_are_refused(arrays: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(arrays)
    whole = (arrays / "fog.npy").read_bytes()
    np.savez(arrays / "zip.npz", a=np.zeros(3))
    objects = io.BytesIO()
    np.save(objects, np.array([_Runs()], dtype=object), allow_pickle=True)
    for content in (
        pickle.dumps(_Runs()),
        objects.getvalue(),
        whole[: len(whole) // 2],
        whole[:20],
        b"",
        (arrays / "zip.npz").read_bytes(),
    ):
        (arrays / "bad.npy").write_bytes(content)
        with pytest.raises(BadInput, match=r"bad\.npy"):
            open_corrupted(arrays, "bad", 1)
    assert not (arrays / "was-run").exists()
