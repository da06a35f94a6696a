"""A recipe as a runtime carries it out: the simulation with the runtime's departures is what the runtime answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.precision import Bits
from seatrial.core.realise import realise
from seatrial.core.recipe import Affine, Recipe, Replace, Round
from seatrial.core.sites import operators
from seatrial.core.target import Target
from seatrial.deploy.onnxruntime import OnnxRuntime
from seatrial.deploy.openvino import OpenVino
from seatrial.quant.as_run import as_run
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place


class Residual(nn.Module):
    """A residual block whose sum a convolution joins, one with two convolutions before the sum, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(n, 16, 3, padding=1) for n in (3, 16, 16))
        self.c, self.short = nn.Conv2d(16, 24, 3, 2, 1), nn.Conv2d(16, 24, 1, 2)
        self.head = nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.b(self.a(x).relu()) + x).relu()
        x = (self.c(x) + self.short(x)).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(Residual(), torch.rand(2, 3, 24, 24))


def pictures(seed: int) -> Tensor:
    return torch.rand(16, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


def planned(graph: Graph, target: Target) -> Recipe:
    sites = place(graph, target.placement, Bits(8, 8))
    return Nearest().plan(graph, [pictures(1)], sites, rng=generator(0))


def test_openvino_rounds_no_convolution_that_it_adds_to_a_stream(graph: Graph) -> None:
    recipe = as_run(graph, planned(graph, OpenVino()), OpenVino().placement)
    open_sites = [
        str(edit.site)
        for edit in recipe.rounds
        if isinstance(edit.grid, Affine) and not edit.grid.rounds and edit.site.port == "output"
    ]
    # The second convolution of the last sum is stored and read again: it stays rounded.
    assert open_sites == ["b/conv2d#0:output", "c/conv2d#0:output"]


def test_biases_stand_on_the_grid_of_the_products(graph: Graph) -> None:
    target = OnnxRuntime()
    before = planned(graph, target)
    recipe = as_run(graph, before, target.placement)
    grids = {str(edit.site): edit.grid for edit in recipe.rounds}
    biases = {str(edit.site): edit.value for edit in recipe.edits if isinstance(edit, Replace)}
    reads = {"a": "/relu#0:output", "b": "/relu#1:output", "c": "/relu#2:output", "short": "/relu#2:output"}
    for name, read in reads.items():
        weight, value = grids[f"{name}/conv2d#0:weight"], grids[read]
        assert isinstance(weight, Affine)
        assert isinstance(value, Affine)
        codes = biases[f"{name}/conv2d#0:bias"].double() / (weight.scale.double() * value.scale.double())
        assert float((codes - codes.round()).abs().max()) < 1e-2
        assert float(codes.abs().max()) > 10
    assert set(biases) == {f"{name}:bias" for name in operators(graph) if "conv2d" in name or "linear" in name}
    assert before.rounds == recipe.rounds  # the grids stay


@pytest.mark.parametrize("kind", [OnnxRuntime, OpenVino])
def test_the_simulation_is_what_the_runtime_answers(kind: type[Target], graph: Graph, tmp_path: Path) -> None:
    target = kind()
    if not kind.installed():  # pyright: ignore[reportAttributeAccessIssue]
        pytest.skip(f"{target.name} is not installed")
    recipe = planned(graph, target)
    simulation = realise(graph, as_run(graph, recipe, target.placement))
    predictor = target.open(target.compile(simulation, tmp_path / "model", bits="w8a8"), threads=1)
    x = pictures(2)
    answered = predictor(x)
    predictor.close()
    with torch.no_grad():
        simulated, as_written = simulation.module(x), realise(graph, recipe).module(x)
    # Most pictures have no value at the border of two codes, where round-off decides; the departures reach many.
    equal = ((answered - simulated).abs().amax(1) < 1e-5).float().mean()
    written = ((answered - as_written).abs().amax(1) < 1e-5).float().mean()
    assert equal >= 0.9
    assert written <= equal - 0.1


def test_nothing_changes_for_a_runtime_without_departures(graph: Graph) -> None:
    target = OpenVino()
    recipe = planned(graph, target)
    plain = OnnxRuntime().placement
    assert as_run(graph, recipe, type(plain)("plain", "by-range", operator_outputs=False)) is recipe


def test_an_open_grid_is_saved(graph: Graph, tmp_path: Path) -> None:
    recipe = as_run(graph, planned(graph, OpenVino()), OpenVino().placement)
    recipe.save(tmp_path / "recipe")
    again = Recipe.load(tmp_path / "recipe")
    assert [edit.grid.rounds for edit in again.rounds if isinstance(edit.grid, Affine)] == [
        edit.grid.rounds for edit in recipe.rounds if isinstance(edit.grid, Affine)
    ]
    assert all(isinstance(edit, Round | Replace) for edit in again.edits)
    x = pictures(3)
    assert torch.equal(realise(graph, again).module(x), realise(graph, recipe).module(x))
