"""Detectors that run as they are: torchvision's, a callable, and what their boxes become in another convention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from seatrial.bench.plan import Plan, Subject
from seatrial.bench.store import Store
from seatrial.bench.sweep import sweep
from seatrial.core.detection import Detection
from seatrial.core.instance_segmentation import InstanceSegmentation
from seatrial.core.pipeline import Pipeline, Resize
from seatrial.core.runs import mask_of, runs_of
from seatrial.core.sample import Picture, Placement, Sample
from seatrial.core.task import LabelMap
from seatrial.core.truth import Objects
from seatrial.data.task_files import open_task_data
from seatrial.errors import BadInput, NotApplicable
from seatrial.jobs.noises import parse_noise, text_of
from seatrial.models.eager_detector import EagerDetector, open_detector
from seatrial.models.names import RANDOM

SIDE = 64


def tiny_segmenter() -> nn.Module:
    """Mask R-CNN of torchvision around one convolution."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8, padding=1), nn.ReLU())
        backbone.out_channels = 8
        return MaskRCNN(
            backbone,
            num_classes=3,
            min_size=SIDE,
            max_size=SIDE,
            rpn_anchor_generator=AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),)),
            box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
            mask_roi_pool=MultiScaleRoIAlign(["0"], 4, 2),
            box_score_thresh=0.0,
            rpn_post_nms_top_n_test=30,
        ).eval()


def pictures(count: int = 2) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def known(name: str) -> Sample:
    square = np.zeros((SIDE, SIDE), dtype=bool)
    square[8:40, 8:40] = True
    box = np.array([[8.0, 8.0, 40.0, 40.0]])
    target = Objects(box, np.array([1]), np.array([False]), np.array([1024.0]), (runs_of(square),))
    return Sample(name, 0, target=target)


def placed() -> Picture:
    return Picture(np.zeros((SIDE, SIDE, 3), np.uint8), (SIDE, SIDE), Placement((1.0, 1.0), (0, 0)))


def test_a_segmenter_of_torchvision_is_judged_with_its_masks() -> None:
    network, inputs = tiny_segmenter(), pictures()
    kept = inputs.clone()
    detector = EagerDetector(network)
    first, again = detector(inputs), detector(inputs)
    assert torch.equal(inputs, kept)
    assert all(torch.equal(first[i][name], again[i][name]) for i in range(2) for name in first[i])
    labels = LabelMap(("cat", "dog"), background=1)
    samples, seen = [known("a"), known("b")], [placed(), placed()]
    table = InstanceSegmentation(detection=Detection(labels=labels)).answer(first, samples, seen)
    for row, entry in zip(table.to_pylist(), first, strict=True):
        wanted = [i for i in range(len(entry["scores"])) if float(entry["scores"][i]) >= 0.001][:100]
        assert wanted
        np.testing.assert_allclose(row["scores"], entry["scores"][wanted].numpy(), rtol=1e-6)
        assert row["classes"] == (entry["labels"][wanted] - 1).tolist()
        np.testing.assert_allclose(np.reshape(row["boxes"], (-1, 4)), entry["boxes"][wanted].numpy(), atol=1e-4)
        for runs, i in zip(row["runs"], wanted, strict=True):
            # Outside its box torchvision has drawn nothing, so inside is all there is.
            np.testing.assert_array_equal(mask_of(np.array(runs), (SIDE, SIDE)), entry["masks"][i, 0].numpy() > 0.5)


def test_only_far_corners_move_in_the_other_convention() -> None:
    network = tiny_segmenter()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    detector = EagerDetector(network)
    altered = detector.under("decode")
    assert detector.under("as-trained") is detector
    assert isinstance(network.roi_heads.box_coder, BoxCoder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    coder, other = network.roi_heads.box_coder, altered.detect.roi_heads.box_coder
    codes, boxes = torch.randn(5, 8), torch.tensor([[0.0, 0.0, 20.0, 30.0]] * 5)
    moved = other.decode(codes, [boxes]) - coder.decode(codes, [boxes])
    torch.testing.assert_close(moved, torch.tensor([0.0, 0.0, -1.0, -1.0]).expand(5, 2, 4), atol=1e-4, rtol=0)
    moved = other.decode_single(codes, boxes) - coder.decode_single(codes, boxes)
    wanted = torch.tensor([0.0, 0.0, -1.0, -1.0]).repeat(5, 2)
    torch.testing.assert_close(moved, wanted, atol=1e-4, rtol=0)
    assert not torch.equal(altered(pictures())[0]["boxes"], detector(pictures())[0]["boxes"])
    with pytest.raises(NotApplicable, match="cannot be changed from outside"):
        detector.under("everywhere")
    with pytest.raises(NotApplicable, match="cannot be changed from outside"):
        EagerDetector(lambda pictures: []).under("decode")
    with pytest.raises(NotApplicable, match="Identity has no box coder"):
        EagerDetector(nn.Identity()).under("decode")


def test_a_sweep_alters_what_the_detector_alone_can_alter(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    image = (pictures()[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    texts = ("box_offset:decode", "box_offset:everywhere", "ceil_mode:ceil", "upsample:bilinear", "precision:bf16")
    noises = (*texts, "precision:int8", "box_offset:decode+precision:bf16")
    detector = EagerDetector(tiny_segmenter())
    plan = Plan(
        model="tiny",
        dataset=open_task_data(tmp_path, "detection", class_names=["cat", "dog"]),
        pipeline=Pipeline((SIDE, SIDE), Resize()),
        task=Detection(labels=LabelMap(("cat", "dog"), background=1)),
        noises=tuple(parse_noise(text) for text in noises),
    )
    store = Store(tmp_path / "store")
    sweep(lambda: [Subject("tiny", "eager", detector, "tiny", alter=detector.alter)], plan, store)
    cells = {text_of(e.cell.noise): store.read(e.cell) for e in store.cells() if e.cell.noise is not None}
    status = {text: cells[text].status for text in noises}
    assert status.pop("box_offset:everywhere") == status.pop("precision:int8") == "not-applicable"
    # Its backbone has no pool and enlarges nothing.
    assert status.pop("ceil_mode:ceil") == status.pop("upsample:bilinear") == "not-applicable"
    assert "no operator that ceil_mode could change" in str(cells["ceil_mode:ceil"].reason)
    assert set(status.values()) == {"done"}
    assert cells["precision:bf16"].table.column("output_difference")[0].as_py() > 0


def test_any_callable_that_finds_will_do_and_others_are_named() -> None:
    def brightest(pictures: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for picture in pictures:
            y, x = divmod(int(picture.sum(0).argmax()), SIDE)
            box = torch.tensor([[x, y, x + 1, y + 1]], dtype=torch.float32)
            found.append({"boxes": box, "scores": torch.ones(1), "labels": torch.zeros(1, dtype=torch.int64)})
        return found

    inputs = torch.zeros(1, 3, SIDE, SIDE)
    inputs[0, :, 5, 9] = 1
    (row,) = Detection().answer(EagerDetector(brightest)(inputs), [known("a")], [placed()]).to_pylist()
    assert (row["boxes"], row["scores"]) == ([9, 5, 10, 6], [1])
    assert EagerDetector(brightest).gives == frozenset()
    with pytest.raises(BadInput, match="a detector that gives a Tensor; wanted a list with a mapping of boxes"):
        EagerDetector(lambda pictures: torch.stack(pictures))(inputs)
    classifier = EagerDetector(lambda pictures: [{"logits": torch.zeros(3)} for _ in pictures])
    with pytest.raises(BadInput, match="the entries logits for a picture; wanted boxes, scores and labels"):
        Detection().answer(classifier(inputs), [known("a")], [placed()])


def test_torchvision_detectors_are_opened_by_name(tmp_path: Path) -> None:
    name = "torchvision:ssdlite320_mobilenet_v3_large"
    opened = open_detector(name, weights=RANDOM, n_classes=2)
    assert (opened.labels.background, opened.masks) == (1, False)
    assert opened.warnings
    (found,) = opened.predictor(torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)))
    assert found["boxes"].shape[1] == 4
    assert set(found["labels"].tolist()) <= {1, 2}
    weights = tmp_path / "other.safetensors"
    state = {key: value.clone() for key, value in opened.predictor.detect.state_dict().items()}
    first = next(key for key in state if key.endswith("weight"))
    state[first] += 1
    save_file(state, weights)
    loaded = open_detector(name, weights=weights, n_classes=2)
    assert torch.equal(loaded.predictor.detect.state_dict()[first], state[first])
    assert loaded.digest != opened.digest
    with pytest.raises(BadInput, match="unknown torchvision detector 'ssdlite'; wanted one of: fasterrcnn"):
        open_detector("torchvision:ssdlite", weights=RANDOM)


def test_a_factory_may_give_a_detector() -> None:
    opened = open_detector(f"{__name__}:tiny_segmenter")
    assert opened.masks
    assert len(opened.predictor(pictures(1))) == 1
