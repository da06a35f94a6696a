"""Records of semantic segmentation: read at the source's pixels as torch resizes, counted as scikit-learn counts."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from seatrial.core.at_source import at_source, in_view, nearest_at_source
from seatrial.core.sample import Picture, Placement, Sample
from seatrial.core.segmentation import SemanticSegmentation
from seatrial.core.task import LabelMap
from seatrial.core.truth import IGNORED, ClassMap
from seatrial.errors import BadInput, NotApplicable


def picture(input_px: tuple[int, int], source_px: tuple[int, int], placement: Placement | None = None) -> Picture:
    scale = input_px[0] / source_px[0], input_px[1] / source_px[1]
    return Picture(np.zeros((*input_px, 3), np.uint8), source_px, placement or Placement(scale, (0, 0)))


def known(name: str, classes: np.ndarray) -> Sample:
    return Sample(name, 0, target=ClassMap(classes))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_maps_are_read_as_torch_resizes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    small, input_px, source_px = (tuple(rng.integers(1, 30, 2).tolist()) for _ in range(3))
    maps = torch.randn(3, *small, generator=torch.Generator().manual_seed(seed))
    placed = picture(input_px, source_px)
    wanted = F.interpolate(maps[None], source_px, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(at_source(maps, placed), wanted, rtol=1e-4, atol=1e-4)
    height, width = source_px
    window = (height // 3, width // 2, height, width)
    part = at_source(maps, placed, window)
    assert torch.equal(part, at_source(maps, placed)[:, height // 3 :, width // 2 :])
    classes = rng.integers(0, 9, small)
    found = nearest_at_source(classes, placed)
    centers = [
        [Fraction((2 * at + 1) * small[axis], 2 * source_px[axis]) for at in range(source_px[axis])] for axis in (0, 1)
    ]
    for y, row in enumerate(centers[0]):
        for x, column in enumerate(centers[1]):
            if row.denominator > 1 and column.denominator > 1:  # a center on a border may fall either way
                assert found[y, x] == classes[int(row), int(column)]
    assert in_view(placed).all()


def test_a_map_of_the_same_size_is_read_as_it_is() -> None:
    maps = torch.randn(4, 37, 53, generator=torch.Generator().manual_seed(0))
    assert torch.equal(at_source(maps, picture((37, 53), (37, 53))), maps)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.booleans())
@settings(max_examples=30, deadline=None)
def test_confusions_are_those_of_scikit_learn(seed: int, n_classes: int, as_classes: bool) -> None:
    rng = np.random.default_rng(seed)
    shapes = [tuple(rng.integers(1, 20, 2).tolist()) for _ in range(3)]
    truths = [np.where(rng.random(s) < 0.2, IGNORED, rng.integers(0, n_classes, s)) for s in shapes]
    samples = [known(str(i), truth) for i, truth in enumerate(truths)]
    pictures = [picture((16, 24), shape) for shape in shapes]
    scores = torch.from_numpy(rng.normal(0, 1, (3, n_classes, 8, 12)).astype(np.float32))
    outputs = scores.argmax(1) if as_classes else scores
    names = tuple("abcdef"[:n_classes])
    task = SemanticSegmentation(labels=LabelMap(names))
    kept = outputs.clone()
    table = task.answer(outputs, samples, pictures)
    assert torch.equal(outputs, kept)
    assert table.schema == SemanticSegmentation.SCHEMA
    for i, row in enumerate(table.to_pylist()):
        # How maps are read is judged above; near ties of classes would fall either way in another order of sums.
        if as_classes:
            answer = nearest_at_source(outputs[i].numpy(), pictures[i])
        else:
            answer = at_source(scores[i], pictures[i]).argmax(0).numpy()
        judged = truths[i] != IGNORED
        wanted = np.zeros((n_classes, n_classes + 1), dtype=np.int64)
        if judged.any():
            wanted[:, :n_classes] = confusion_matrix(truths[i][judged], answer[judged], labels=range(n_classes))
        found = np.zeros(wanted.size, dtype=np.int64)
        found[row["cells"]] = row["counts"]
        np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)
        assert (row["pixels"], row["correct_pixels"]) == (judged.sum(), np.trace(wanted))
        alone = task.answer(outputs[i : i + 1], [samples[i]], [pictures[i]])
        assert alone.equals(table.slice(i, 1))


def test_what_was_cropped_away_or_filled_in_is_not_judged() -> None:
    # 10 by 20 pixels, of which the input of 8 by 8 shows the columns 6 to 13 and the rows 1 to 8.
    placed = picture((8, 8), (10, 20), Placement((1.0, 1.0), (-1, -6)))
    truth = np.zeros((10, 20), dtype=np.int64)
    truth[1, 6] = 1
    scores = torch.zeros(1, 2, 8, 8)
    scores[0, 1, 0, 0] = 1
    (row,) = SemanticSegmentation().answer(scores, [known("a", truth)], [placed]).to_pylist()
    assert (row["pixels"], row["correct_pixels"]) == (64, 64)
    # A letterbox: 4 by 8 pixels in the upper half of 8 by 8; what the lower half holds is never read.
    placed = picture((8, 8), (4, 8), Placement((1.0, 1.0), (0, 0)))
    scores = torch.zeros(1, 2, 8, 8)
    scores[0, 1, 4:] = 1
    (row,) = SemanticSegmentation().answer(scores, [known("a", np.zeros((4, 8), np.int64))], [placed]).to_pylist()
    assert (row["pixels"], row["correct_pixels"]) == (32, 32)


def test_scores_that_are_no_numbers_are_wrong_everywhere() -> None:
    scores = torch.zeros(1, 2, 4, 4)
    scores[0, 1, 0, 0] = torch.nan
    (row,) = (
        SemanticSegmentation()
        .answer({"out": scores}, [known("a", np.zeros((4, 4), np.int64))], [picture((4, 4), (4, 4))])
        .to_pylist()
    )
    assert dict(zip(row["cells"], row["counts"])) == {0: 15, 2: 1}
    assert row["correct_pixels"] == 15


def test_background_scores_are_cut_off() -> None:
    scores = torch.zeros(1, 3, 2, 2)
    scores[0, 0] = 9
    scores[0, 2] = 1
    task = SemanticSegmentation(labels=LabelMap(background=1))
    (row,) = task.answer(scores, [known("a", np.ones((2, 2), np.int64))], [picture((2, 2), (2, 2))]).to_pylist()
    assert (row["n_classes"], row["correct_pixels"]) == (2, 4)


def test_large_pictures_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from seatrial.core import segmentation

    scores = torch.randn(1, 3, 7, 9, generator=torch.Generator().manual_seed(1))
    truth = known("a", np.random.default_rng(0).integers(0, 3, (40, 50)))
    placed = picture((14, 18), (40, 50))
    whole = SemanticSegmentation().answer(scores, [truth], [placed])
    monkeypatch.setattr(segmentation, "_BLOCK", 1000)
    assert SemanticSegmentation().answer(scores, [truth], [placed]).equals(whole)


def test_bad_input_is_named() -> None:
    task, placed = SemanticSegmentation(), picture((4, 4), (4, 4))
    scores, good = torch.zeros(1, 2, 4, 4), known("a", np.zeros((4, 4), np.int64))
    with pytest.raises(BadInput, match=r"shape \(1, 1000\) for 1 pictures; wanted scores"):
        task.answer(torch.zeros(1, 1000), [good], [placed])
    with pytest.raises(BadInput, match="integer classes without known names"):
        task.answer(torch.zeros(1, 4, 4, dtype=torch.int64), [good], [placed])
    with pytest.raises(BadInput, match="sample 'b' without a map of classes"):
        task.answer(scores, [Sample("b", 0)], [placed])
    with pytest.raises(BadInput, match="class 7 in the mask of 'c'; wanted 0 to 1, or 255"):
        task.answer(scores, [known("c", np.full((4, 4), 7))], [placed])
    with pytest.raises(NotApplicable, match="on its side"):
        task.answer(scores, [known("d", np.zeros((4, 6), np.int64))], [picture((4, 4), (6, 4))])
