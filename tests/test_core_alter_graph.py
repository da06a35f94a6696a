"""Graphs with other operators: sizes by hand, eager networks with the same flags as the oracle, misfits by name."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from seatrial.core.alter_graph import GRAPH_EDITS, altered, carried, pool_size, with_edit
from seatrial.core.alter_module import altered_module
from seatrial.core.graph import Graph, capture
from seatrial.core.realise import realise
from seatrial.core.recipe import Affine, Recipe, Round
from seatrial.core.sites import operators, signature, site_of
from seatrial.errors import BadInput, NoNoise, NotApplicable
from seatrial.models.checkpoint import fit_weights, load_weights


class Pyramid(nn.Module):
    """Two levels joined as in a feature pyramid, pooled by both kinds, enlarged by both kinds; 20 px."""

    def __init__(self, mode: str = "nearest", last: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.mode, self.last = mode, last or {"mode": "bilinear", "align_corners": False}
        self.stem, self.pool = nn.Conv2d(3, 6, 3, padding=1), nn.MaxPool2d(3, 2)
        self.down, self.average = nn.Conv2d(6, 6, 3, padding=1), nn.AvgPool2d(2, padding=1, count_include_pad=False)
        self.lateral, self.head = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.pool(self.stem(x).relu())
        coarse = self.average(self.down(fine)).relu()
        corners = {} if self.mode == "nearest" else {"align_corners": False}
        both = self.lateral(fine) + functional.interpolate(coarse, size=fine.shape[-2:], mode=self.mode, **corners)
        return functional.interpolate(self.head(both.relu()), size=x.shape[-2:], **self.last)


def pictures(size: int, count: int = 3) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(size))


def seeded(make: Any, *args: Any, **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*args, **options).eval()


def of(module: nn.Module, size: int = 20) -> Graph:
    return capture(module, pictures(size, 2))


@functools.cache
def pyramid() -> Graph:
    return of(seeded(Pyramid))


def with_ceil(module: nn.Module, ceil: bool) -> nn.Module:
    twin = copy.deepcopy(module)
    for part in twin.modules():
        if isinstance(part, nn.MaxPool2d | nn.AvgPool2d):
            part.ceil_mode = ceil
    return twin


def run(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "floor", "ceil"),
    [
        # By hand, (size - kernel + 2 padding) / stride + 1: ResNet at 224 and at 800 px, SqueezeNet at 227 px.
        (112, 3, 2, 1, 56, 57),
        (400, 3, 2, 1, 200, 201),
        (56, 3, 2, 0, 27, 28),
        (113, 3, 2, 0, 56, 56),
        (7, 2, 2, 0, 3, 4),
        (4, 1, 2, 0, 2, 2),  # the third window would begin behind the picture
    ],
)
def test_sizes_of_pools_by_hand(size: int, kernel: int, stride: int, padding: int, floor: int, ceil: int) -> None:
    assert pool_size(size, kernel, stride, padding, 1, ceil=False) == floor
    assert pool_size(size, kernel, stride, padding, 1, ceil=True) == ceil


@given(
    size=st.integers(1, 40),
    kernel=st.integers(1, 6),
    stride=st.integers(1, 6),
    dilation=st.integers(1, 3),
    ceil=st.booleans(),
    data=st.data(),
)
def test_sizes_of_pools_are_those_of_pytorch(
    size: int, kernel: int, stride: int, dilation: int, ceil: bool, data: st.DataObject
) -> None:
    padding = data.draw(st.integers(0, kernel // 2))
    found = pool_size(size, kernel, stride, padding, dilation, ceil=ceil)
    if found < 1 or dilation * (kernel - 1) + 1 > size + 2 * padding:
        return  # PyTorch refuses a window larger than the picture
    expected = functional.max_pool2d(torch.zeros(1, 1, size, 1), (kernel, 1), (stride, 1), (padding, 0), dilation, ceil)
    assert expected.shape[2] == found


@pytest.mark.parametrize(("edit", "ceil"), [("ceil_mode", True), ("floor_mode", False)])
def test_pools_are_those_of_the_eager_network_with_that_flag(edit: str, ceil: bool) -> None:
    module = with_ceil(seeded(Pyramid), not ceil)
    graph = of(module)
    found = altered(graph, (edit,))
    expected = run(with_ceil(module, ceil), pictures(20))
    assert torch.equal(run(found.module, pictures(20)), expected)
    assert not torch.equal(run(graph.module, pictures(20)), expected)
    assert found.inputs == graph.inputs
    assert signature(found) == signature(graph)
    with pytest.raises(NoNoise, match="every pool has the same size"):
        altered(found, (edit,))


UPSAMPLED = [
    ("upsample:bilinear", "nearest", {}, {"mode": "bilinear", "align_corners": False}, "bilinear"),
    ("upsample:nearest", "bilinear", {}, {"mode": "nearest"}, "nearest"),
    ("align_corners", "nearest", {}, {"mode": "bilinear", "align_corners": True}, "nearest"),
    ("align_corners", "nearest", {"mode": "bicubic"}, {"mode": "bicubic", "align_corners": True}, "nearest"),
    (
        "align_corners",
        "nearest",
        {"mode": "bilinear", "align_corners": True, "antialias": False},
        {"mode": "bilinear", "align_corners": False},
        "nearest",
    ),
    ("upsample:bilinear", "nearest", {"mode": "nearest-exact"}, {"mode": "bilinear"}, "bilinear"),
]


@pytest.mark.parametrize(("edit", "mode", "last", "last_after", "mode_after"), UPSAMPLED)
def test_upsampling_is_that_of_the_eager_network(
    edit: str, mode: str, last: dict[str, Any], last_after: dict[str, Any], mode_after: str
) -> None:
    module = seeded(Pyramid, mode, last)
    graph = of(module)
    expected = run(seeded(Pyramid, mode_after, last_after), pictures(20))
    found = run(altered(graph, (edit,)).module, pictures(20))
    assert torch.equal(found, expected)
    assert not torch.equal(run(module, pictures(20)), expected)


@pytest.mark.parametrize("edits", [("ceil_mode", "upsample:bilinear"), ("upsample:nearest", "ceil_mode")])
def test_graph_and_eager_module_are_altered_alike(edits: tuple[str, ...]) -> None:
    module = seeded(Pyramid)
    expected = run(altered_module(module, edits), pictures(20))
    assert torch.equal(run(altered(pyramid(), edits).module, pictures(20)), expected)


def test_edits_are_made_in_order_and_leave_their_arguments_alone() -> None:
    graph = pyramid()
    code, state = graph.module.code, {name: value.clone() for name, value in graph.module.state_dict().items()}
    both = altered(graph, ("upsample:bilinear", "align_corners"))
    last = {"mode": "bilinear", "align_corners": True}
    assert torch.equal(run(both.module, pictures(20)), run(_AlignedPyramid.like(last), pictures(20)))
    assert graph.module.code == code
    assert all(torch.equal(value, state[name]) for name, value in graph.module.state_dict().items())


class _AlignedPyramid(Pyramid):
    """The pyramid with aligned corners at both places."""

    @staticmethod
    def like(last: dict[str, Any]) -> nn.Module:
        return seeded(_AlignedPyramid, "bilinear", last)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.pool(self.stem(x).relu())
        coarse = self.average(self.down(fine)).relu()
        large = functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=True)
        return functional.interpolate(
            self.head((self.lateral(fine) + large).relu()), size=x.shape[-2:], mode="bilinear", align_corners=True
        )


def test_what_changes_nothing_beside_what_does_is_passed_over() -> None:
    graph = of(with_ceil(seeded(Pyramid), True))
    one, both = altered(graph, ("align_corners",)), altered(graph, ("ceil_mode", "align_corners"))
    assert torch.equal(run(one.module, pictures(20)), run(both.module, pictures(20)))


class Flattened(nn.Module):
    """A pool before a view, a flattening or a linear operator of constant size; 9 px."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.conv, self.pool = way, nn.Conv2d(3, 2, 1), nn.MaxPool2d(2)
        self.add = nn.Parameter(torch.ones(1, 2, 4, 4))
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv(x))
        if self.way == "add":
            x = x + self.add
        x = x.view(-1, 32) if self.way == "view" else x.flatten(1)
        return self.head(x)


@pytest.mark.parametrize(
    ("way", "named"),
    [
        ("linear", r"'head/linear#0' no longer fits: it reads 50 instead of 32"),
        ("add", r"'/add#0' no longer fits: it reads 2x5x5 instead of 2x4x4"),
        ("view", r"'/reshape#0' no longer fits: it reads 2x5x5 instead of 2x4x4"),
    ],
)
def test_a_constant_size_that_no_longer_fits_is_named(way: str, named: str) -> None:
    with pytest.raises(NotApplicable, match=named):
        altered(of(seeded(Flattened, way), 9), ("ceil_mode",))


class Hidden(nn.Module):
    """A view that takes 4 samples for one where the pool has twice the sides; 3 px."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x).view(-1, 3)


def test_a_view_that_hides_its_misfit_in_the_batch_is_named() -> None:
    with pytest.raises(NotApplicable, match="'/reshape#0'"):
        altered(of(Hidden(), 3), ("ceil_mode",))


def test_an_output_of_another_size_is_not_what_a_task_reads() -> None:
    with pytest.raises(NotApplicable, match="the output has the size 3x5x5 instead of 3x4x4"):
        altered(of(nn.MaxPool2d(2), 9), ("ceil_mode",))


def test_a_graph_without_such_operators_says_what_is_missing() -> None:
    graph = of(nn.Conv2d(3, 2, 1), 8)
    for edit, missing in zip(GRAPH_EDITS, ("pooling", "pooling", "upsampling", "upsampling", "corners"), strict=True):
        with pytest.raises(NotApplicable, match=missing):
            altered(graph, (edit,))
        with pytest.raises(NotApplicable, match=f"Conv2d has no operator that {edit} could change"):
            altered_module(nn.Conv2d(3, 2, 1), (edit,))(pictures(8))
    for alter in (altered, altered_module):
        with pytest.raises(BadInput, match="did you mean 'ceil_mode'"):
            alter(graph if alter is altered else graph.module, ("ceil_mod",))  # type: ignore[arg-type]
    with pytest.raises(NoNoise, match="already"):
        altered(of(seeded(Pyramid, "bilinear")), ("upsample:bilinear",))


def test_an_edit_takes_the_place_of_its_opposite() -> None:
    assert with_edit(("ceil_mode", "align_corners"), "floor_mode") == ("align_corners", "floor_mode")
    assert with_edit(("upsample:nearest",), "upsample:bilinear") == ("upsample:bilinear",)
    assert with_edit(("ceil_mode",), "align_corners") == ("ceil_mode", "align_corners")
    with pytest.raises(NoNoise, match="already"):
        with_edit(("align_corners",), "align_corners")


def rounding(graph: Graph) -> Recipe:
    """Return a recipe that rounds every output and every convolution's weight to 4 bits."""
    edits = []
    for name, node in operators(graph).items():
        if node.op != "placeholder":
            edits.append(Round(site_of(name, "output"), Affine(4, True, torch.tensor(0.2), torch.tensor(0))))
        if "conv2d" in name:
            scale = torch.full((6 if "head" not in name else 4,), 0.1)
            edits.append(Round(site_of(name, "weight"), Affine(4, True, scale, torch.zeros(len(scale)), 0)))
    return Recipe(tuple(edits), signature(graph))


@pytest.mark.parametrize("edit", ["ceil_mode", "upsample:bilinear", "align_corners"])
def test_a_recipe_is_carried_over(edit: str) -> None:
    """The oracle alters the rounded graph itself, in which the rounds stand already."""
    graph = pyramid()
    recipe = rounding(graph)
    changed = altered(graph, (edit,))
    new = carried(recipe, graph, changed)
    assert new.signature == signature(changed)
    found = run(realise(changed, new).module, pictures(20))
    assert torch.equal(found, run(altered(realise(graph, recipe), (edit,)).module, pictures(20)))
    assert not torch.equal(found, run(realise(graph, recipe).module, pictures(20)))


def test_a_recipe_of_another_graph_is_not_carried_over() -> None:
    graph, other = pyramid(), of(seeded(Flattened, "linear"), 9)
    with pytest.raises(BadInput, match="another graph"):
        carried(rounding(graph), other, other)
    with pytest.raises(NotApplicable, match="operators"):
        carried(rounding(graph), graph, other)


@pytest.fixture(scope="module")
def squeezenet() -> nn.Module:
    """torchvision's network, with its trained weights where the shared development data are."""
    module = seeded(pytest.importorskip("torchvision.models").squeezenet1_1, weights=None)
    weights = SHARED / "models" / "squeezenet1_1_imagenet.safetensors"
    return fit_weights(module, load_weights(weights)).eval() if weights.exists() else module


def test_squeezenet_divides_evenly_at_224(squeezenet: nn.Module) -> None:
    graph = of(squeezenet, 224)
    for edit in ("floor_mode", "ceil_mode"):
        with pytest.raises(NoNoise, match="111x111 to 55x55, 55x55 to 27x27, 27x27 to 13x13"):
            altered(graph, (edit,))


def test_squeezenet_differs_at_227(squeezenet: nn.Module) -> None:
    """torchvision's SqueezeNet is trained with ceil: the deployment that differs rounds down."""
    graph = of(squeezenet, 227)
    found, expected = altered(graph, ("floor_mode",)), with_ceil(squeezenet, False)
    assert torch.equal(run(found.module, pictures(227, 2)), run(expected, pictures(227, 2)))
    assert not torch.equal(run(graph.module, pictures(227, 2)), run(expected, pictures(227, 2)))
    with pytest.raises(NoNoise, match="56x56 to 28x28"):
        altered(graph, ("ceil_mode",))


class Levels(nn.Module):
    """Three levels of a detector's network, joined by torchvision's pyramid."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        ops = pytest.importorskip("torchvision.ops")
        self.stem, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(3, 2, 1)
        self.steps = nn.ModuleList(nn.Conv2d(8, 8, 3, 2, 1) for _ in range(2))
        self.fpn = ops.FeaturePyramidNetwork([8, 8, 8], 8)

    def body(self, x: Tensor) -> dict[str, Tensor]:
        levels = [self.pool(self.stem(x))]
        for step in self.steps:
            levels.append(step(levels[-1]).relu())
        return {str(i): level for i, level in enumerate(levels)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn(self.body(x))


def test_a_detector_is_altered_in_its_backbone_alone() -> None:
    """The oracle sets the pool's flag, and writes the pyramid's sums with the other interpolation."""
    detection = pytest.importorskip("torchvision.models.detection")
    anchors = detection.anchor_utils.AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: Any = detection.RetinaNet(Levels(), 3, 64, 64, anchor_generator=anchors).eval()
    x, eager = pictures(64, 1), altered_module
    before: Any = run(module.backbone, x)
    ceil: Any = eager(module, ("ceil_mode",))
    found: Any = run(ceil.backbone, x)
    expected: Any = run(with_ceil(module.backbone, True), x)
    assert all(torch.equal(found[level], expected[level]) for level in expected)
    assert found["0"].shape != before["0"].shape
    smooth: Any = eager(module, ("upsample:bilinear",))
    fpn = module.backbone.fpn
    with torch.no_grad():
        stages = module.backbone.body(x).values()
        inner = [block(stage) for block, stage in zip(fpn.inner_blocks, stages, strict=True)]
        for level in (1, 0):
            size = inner[level].shape[-2:]
            inner[level] = inner[level] + functional.interpolate(inner[level + 1], size, mode="bilinear")
        assert torch.equal(smooth.backbone(x)["0"], fpn.layer_blocks[0](inner[0]))
        assert len(ceil([x[0]])) == 1
    # Its transform resizes by bilinear interpolation and is left alone; nothing else in it does so.
    untouched: Any = eager(module, ("align_corners",))
    with pytest.raises(NotApplicable, match="Levels has no operator that align_corners could change"):
        untouched([x[0]])
    assert not module.backbone.pool.ceil_mode
