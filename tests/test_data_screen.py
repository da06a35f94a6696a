"""One bad file never ends a run; too many do."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seatrial.core.pipeline import Pipeline
from seatrial.data.files import open_data
from seatrial.data.load import default_pipeline
from seatrial.data.screen import screen
from seatrial.errors import BadInput, NotApplicable


def _picture(kind: str = "JPEG", size_px: tuple[int, int] = (40, 30)) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", size_px, (200, 10, 20)).save(written, kind)
    return written.getvalue()


def _folder(root: Path, files: dict[str, bytes]) -> Path:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
    for name, content in {**{f"{c}/{i}.jpg": _picture() for c in ("cat", "dog") for i in range(8)}, **files}.items():
        (root / name).write_bytes(content)
    return root


BAD = {
    "cat/broken.jpg": _picture()[:200],
    "dog/empty.jpg": b"",
    "dog/text.png": b"not a picture",
    "dog/thin.png": _picture("PNG", (30_000, 1)),
}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("decoder", ["pillow", "opencv", "pyav"])
def test_bad_files_are_listed_with_their_reasons_and_left_out(tmp_path: Path, decoder: str, workers: int) -> None:
    data = open_data(_folder(tmp_path, BAD))
    pipeline = replace(default_pipeline((224, 224)), decoder=decoder)
    steps: list[tuple[int, int]] = []
    good, bad = screen(
        data, pipeline, max_bad=0.2, workers=workers, progress=lambda done, total: steps.append((done, total))
    )
    assert [name for name, _ in bad] == sorted(BAD)
    assert all(reason for _, reason in bad)
    assert dict(bad)["dog/empty.jpg"] == "empty file"
    assert (len(data), len(good)) == (20, 16)
    assert not set(good.ids) & set(BAD)
    assert steps == [(i, 20) for i in range(1, 21)]


def test_the_share_of_bad_files_is_bounded(tmp_path: Path) -> None:
    data = open_data(_folder(tmp_path, BAD))
    assert len(screen(data, default_pipeline((224, 224)), max_bad=4 / 20)[1]) == 4
    with pytest.raises(BadInput, match=r"4 of 20 samples .*first 'cat/broken.jpg': .*--max-bad") as caught:
        screen(data, default_pipeline((224, 224)), max_bad=0.19)
    assert caught.value.exit_code == 2
    with pytest.raises(BadInput, match=r"at most 0\.01"):
        screen(data, default_pipeline((224, 224)))


def test_files_that_a_table_names_in_vain_count_too(tmp_path: Path) -> None:
    root = _folder(tmp_path, {})
    rows = [f"{c}/{i}.jpg,{c}" for c in ("cat", "dog") for i in range(9)]
    (root / "labels.csv").write_text("\n".join(["file,label", *rows]))
    good, bad = screen(open_data(root), default_pipeline((32, 32)), max_bad=0.12)
    assert bad == [("cat/8.jpg", "no such file"), ("dog/8.jpg", "no such file")]
    assert len(good) == 16
    with pytest.raises(BadInput, match="2 of 18"):
        screen(open_data(root), default_pipeline((32, 32)), max_bad=0.1)


def test_a_file_lost_after_opening_is_bad(tmp_path: Path) -> None:
    data = open_data(_folder(tmp_path, {}))
    (tmp_path / "cat" / "3.jpg").unlink()
    assert [name for name, _ in screen(data, default_pipeline((32, 32)), max_bad=0.1)[1]] == ["cat/3.jpg"]


def test_nothing_left_is_refused_whatever_is_allowed() -> None:
    data = open_data([(b"x", 0), (b"y", 1)])
    with pytest.raises(BadInput, match="none of 2"):
        screen(data, default_pipeline((32, 32)), max_bad=1.0)


def test_arrays_of_another_size_than_the_network_takes_are_bad() -> None:
    arrays = np.zeros((4, 3, 8, 8), np.float32)
    data = open_data(zip(arrays, [0, 1, 0, 1]))
    good, bad = screen(data, Pipeline((8, 8)))
    assert (good.ids, bad) == (data.ids, [])
    with pytest.raises(BadInput, match="network takes 3x9x9"):
        screen(data, Pipeline((9, 9)))


def test_a_question_without_an_answer_is_no_bad_file(tmp_path: Path) -> None:
    data = open_data(_folder(tmp_path, {"cat/x.tif": _picture("TIFF")}))
    with pytest.raises(NotApplicable, match="TIFF"):
        screen(data, Pipeline((32, 32), decoder="pyav"))


def test_shared_pictures_are_all_good(shared: Path) -> None:
    data = open_data(shared / "imagenet_original_120", n_classes=1000)
    good, bad = screen(data.subset(range(40)), default_pipeline((224, 224)))
    assert (len(good), bad) == (40, [])
