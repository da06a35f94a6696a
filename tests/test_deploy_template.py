"""One export for many choices of rounds: files from the template against exports of their own, on ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from deploy_graph import Residual
from test_quant_placement import Attention
from torch import Tensor, nn

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, Normalization, capture
from seatrial.core.precision import Bits
from seatrial.core.realise import realise
from seatrial.core.recipe import Affine, FloatType, Recipe, Round
from seatrial.core.sites import Site, signature
from seatrial.core.target import Artefact
from seatrial.deploy.onnx_export import ExportedOnnx, write_onnx
from seatrial.deploy.onnx_template import OnnxTemplate
from seatrial.deploy.onnxruntime import UNASKED, OnnxRuntime
from seatrial.deploy.openvino import OpenVino
from seatrial.errors import BadInput
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place

TARGETS: dict[str, OpenVino | OnnxRuntime] = {"openvino": OpenVino(), "onnxruntime": OnnxRuntime()}
PICTURES = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
NORMALIZATION = Normalization((0.5, 0.4, 0.5), (0.2, 0.2, 0.3))


class Depthwise(nn.Module):
    """An inverted residual with depthwise convolutions, batch norms, ReLU6 and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.wide, self.deep = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.down, self.up, self.flat = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1), nn.Conv2d(16, 8, 1)
        self.six, self.swish, self.gate, self.head = nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.six(self.norm(self.stem(x)))
        inner = self.swish(self.deep(self.six(self.wide(x))))
        gate = self.gate(self.up(self.down(inner.mean((2, 3), keepdim=True)).relu()))
        return self.head((x + self.flat(inner * gate)).mean((2, 3)))


KINDS: dict[str, type[nn.Module]] = {kind.__name__: kind for kind in (Residual, Attention, Depthwise)}


@dataclass(frozen=True, eq=False)
class Case:
    """A network, planned and exported with marks for one target."""

    target: OpenVino | OnnxRuntime
    graph: Graph
    recipe: Recipe
    template: OnnxTemplate

    def write(self, rounds: Sequence[Round], path: Path) -> ExportedOnnx:
        mixed = isinstance(self.target, OnnxRuntime)
        return self.template.write(rounds, path, for_onnxruntime=mixed)

    def export(self, rounds: Sequence[Round], path: Path) -> ExportedOnnx:
        """Export the graph with these rounds by itself."""
        edits = [edit for edit in self.recipe.edits if not isinstance(edit, Round)]
        rounded = realise(self.graph, replace(self.recipe, edits=(*edits, *rounds)))
        mixed = isinstance(self.target, OnnxRuntime)
        return write_onnx(self.target.prepared(rounded), path, for_onnxruntime=mixed)


@cache
def graph_of(name: str) -> Graph:
    torch.manual_seed(0)
    return fold_batch_norm(capture(KINDS[name]().eval(), PICTURES[:2], normalization=NORMALIZATION))


@cache
def case(name: str, target: str) -> Case:
    graph, chosen = graph_of(name), TARGETS[target]
    precision = place(graph, chosen.placement, Bits(8, 8))
    recipe = Nearest().plan(graph, [{graph.inputs[0].name: PICTURES}], precision, rng=generator(0, name))
    return Case(chosen, graph, recipe, OnnxTemplate.of(graph, recipe, chosen.prepared))


def operators(exported: ExportedOnnx) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(exported.path).graph.node)


def answer(exported: ExportedOnnx) -> np.ndarray:
    # Moved behind a transpose, OpenVINO's signed and unsigned rounds around zero make a file that does not load there.
    settings = {"layout": "NCHW", "disabled_optimizers": f"{UNASKED},QDQPropagationTransformer"}
    artefact = Artefact(exported.path, "onnx", "mixed", settings)
    return OnnxRuntime().open(artefact, threads=1)(PICTURES).numpy()


def agree(template: ExportedOnnx, export: ExportedOnnx) -> None:
    assert operators(template) == operators(export)
    assert len(template.float_weights) == len(export.float_weights)
    told, wanted = answer(template), answer(export)
    assert np.isfinite(wanted).all()
    np.testing.assert_array_equal(told, wanted)


both_targets = pytest.mark.parametrize("target", TARGETS)


@pytest.mark.parametrize(
    ("name", "target", "shares"),
    [
        ("Residual", "onnxruntime", (0.0,)),
        ("Attention", "onnxruntime", (0.6,)),
        ("Attention", "openvino", (0.7,)),
        ("Depthwise", "onnxruntime", (0.8,)),
        ("Depthwise", "openvino", (0.0, 0.5)),
    ],
)
def test_all_rounds_and_some_are_what_an_export_gives(
    name: str, target: str, shares: tuple[float, ...], tmp_path: Path
) -> None:
    """Law: same operators, same answers to the last bit; `shares` is what is kept of the rounds at random."""
    one = case(name, target)
    rounds = one.recipe.rounds
    rng = np.random.default_rng([17, *name.encode()])
    for i, share in enumerate((1.0, *shares)):
        some = tuple(edit for edit in rounds if rng.random() < share)
        agree(one.write(some, tmp_path / f"written{i}.onnx"), one.export(some, tmp_path / f"exported{i}.onnx"))


def test_other_grids_go_on_the_same_marks(tmp_path: Path) -> None:
    one = case("Depthwise", "onnxruntime")
    precision = place(one.graph, one.target.placement, Bits(4, 5))
    narrow = Nearest(bias_correction=False, equalization="none").plan(
        one.graph, [{one.graph.inputs[0].name: PICTURES}], precision, rng=generator(1)
    )
    assert {edit.site for edit in narrow.rounds} == set(one.template.sites)
    agree(one.write(narrow.rounds, tmp_path / "written.onnx"), one.export(narrow.rounds, tmp_path / "exported.onnx"))
    some = [edit if i % 2 else Round(edit.site, FloatType("bf16")) for i, edit in enumerate(narrow.rounds)]
    agree(one.write(some, tmp_path / "written2.onnx"), one.export(some, tmp_path / "exported2.onnx"))


def test_rounds_to_a_native_float_are_left_to_the_runtime(tmp_path: Path) -> None:
    one = case("Residual", "openvino")
    rounds = [Round(edit.site, FloatType("bf16")) for edit in one.recipe.rounds]
    native = one.template.write(rounds, tmp_path / "native.onnx", native_floats=frozenset({"bf16"}))
    assert "Cast" in operators(one.write(rounds, tmp_path / "cast.onnx"))
    assert operators(native) == operators(one.write((), tmp_path / "float.onnx"))


def test_no_mark_is_left_and_files_are_valid(tmp_path: Path) -> None:
    one = case("Residual", "onnxruntime")
    for i, rounds in enumerate((one.recipe.rounds, one.recipe.rounds[::2], ())):
        model = onnx.load(one.write(rounds, tmp_path / f"{i}.onnx").path)
        onnx.checker.check_model(model, full_check=True)
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}


@both_targets
def test_writing_leaves_the_template_as_it_was(target: str, tmp_path: Path) -> None:
    one = case("Depthwise", target)
    rounds = one.recipe.rounds
    before = one.write(rounds, tmp_path / "first.onnx").path.read_bytes()
    one.write((), tmp_path / "none.onnx")
    one.write(rounds[::2], tmp_path / "some.onnx")
    assert one.write(rounds, tmp_path / "again.onnx").path.read_bytes() == before
    assert one.write(rounds[::-1], tmp_path / "reversed.onnx").path.read_bytes() == before


class Fork(nn.Module):
    """One tensor that two convolutions read, and a sine."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return torch.cat([self.left(x), self.right(x), x.sin()], 1).mean((2, 3))


def grid(scale: float, bits: int = 8) -> Affine:
    return Affine(bits, False, torch.tensor(scale), torch.tensor(0))


def test_readers_with_one_grid_read_one_round(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = capture(Fork(), PICTURES[:2])
    told_of = signature(graph)
    left, right = (Site.parse(f"{side}/conv2d#0:input0") for side in ("left", "right"))

    def recipe(first: Affine, second: Affine) -> Recipe:
        return Recipe((Round(left, first), Round(right, second)), told_of)

    edits = (*recipe(grid(0.02), grid(0.03)).edits, Round(left, grid(0.05)))  # one site twice is one mark
    template = OnnxTemplate.of(graph, Recipe(edits, told_of))
    assert template.sites == (left, right)
    for second, count in ((grid(0.02), 1), (grid(0.02, 4), 2)):
        told = recipe(grid(0.02), second)
        written = template.write(told.rounds, tmp_path / "written.onnx")
        assert operators(written)["QuantizeLinear"] == count
        agree(written, write_onnx(realise(graph, told), tmp_path / "exported.onnx"))
    kinds = (Round(left, FloatType("bf16")), Round(right, FloatType("bf16")))
    narrowed = template.write(kinds, tmp_path / "narrow.onnx")
    assert operators(narrowed)["Cast"] == 2  # there and back, once for both


def test_a_round_without_a_mark_is_refused(tmp_path: Path) -> None:
    one = case("Residual", "openvino")
    site = Site.parse("first/conv2d#0:output")
    assert site not in one.template.sites
    with pytest.raises(BadInput, match="first/conv2d#0:output"):
        one.template.write([*one.recipe.rounds, Round(site, grid(0.1))], tmp_path / "refused.onnx")
    assert not (tmp_path / "refused.onnx").exists()


def test_marks_stand_where_the_recipe_rounds() -> None:
    one = case("Residual", "onnxruntime")
    assert one.template.sites == tuple(edit.site for edit in one.recipe.rounds)
