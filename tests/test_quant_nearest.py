"""The baseline quantizer against torch's observers, its bias correction against definitions, and who is to blame."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization.observer import MinMaxObserver, MovingAverageMinMaxObserver, PerChannelMinMaxObserver

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits, Precision
from seatrial.core.realise import realise
from seatrial.core.recipe import Affine, FloatType, Recipe, Replace, Round
from seatrial.core.sites import Site, operators, signature
from seatrial.errors import BadInput
from seatrial.numerics.observe import watch
from seatrial.numerics.ranges import MinMax, MovingAverage, Range, grid_for, weight_grid
from seatrial.quant.bias_correction import correct_biases
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place
from seatrial.quant.site_error import blame, site_errors

U8, S8 = Precision(8, signed=False), Precision(8, signed=True, symmetric=True, axis=0)
RULES = PlacementRules("all outputs", "unsigned", operator_outputs=True)


class Net(nn.Module):
    """A convolution with ReLU6, one without bias, both joined, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.a(x) * 8)
        x = torch.cat([self.b(x), self.b(x).relu()], 1)
        return self.head(x.mean((2, 3)).reshape(-1, 2, 8).sum(1))


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(Net(), torch.rand(2, 3, 12, 12))


def batches(count: int = 3) -> list[Tensor]:
    return [torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(count)]


def values_at(graph: Graph, operator: str, data: list[Tensor]) -> list[Tensor]:
    seen: list[Tensor] = []
    watch(graph, data, {operators(graph)[operator]: lambda value: seen.append(value.clone())})
    return seen


def plan(graph: Graph, sites: dict[str, Precision], data: list[Tensor], **options: object) -> Recipe:
    chosen = {"bias_correction": False, "equalization": "none", **options}
    return Nearest(**chosen).plan(  # pyright: ignore[reportArgumentType]
        graph, data, {Site.parse(text): wanted for text, wanted in sites.items()}, rng=generator(0)
    )


@pytest.mark.parametrize(("ranges", "averaging"), [(MinMax(), False), (MovingAverage(), True)], ids=["min-max", "avg"])
def test_activation_grids_are_those_of_torch_observers(graph: Graph, ranges: Range, averaging: bool) -> None:
    recipe = plan(graph, {"b/conv2d#0:output": U8}, batches(), ranges=ranges)
    kind = MovingAverageMinMaxObserver if averaging else MinMaxObserver
    oracle = kind(
        dtype=torch.quint8, qscheme=torch.per_tensor_affine, **({"averaging_constant": 0.1} if averaging else {})
    )
    for value in values_at(graph, "b/conv2d#0", batches()):
        oracle(value)
    scale, zero = oracle.calculate_qparams()
    (edit,) = recipe.rounds
    assert isinstance(edit.grid, Affine)
    assert float(edit.grid.scale) == pytest.approx(float(scale), rel=1e-5)
    assert int(edit.grid.zero_point) == int(zero)


def test_weight_grids_are_those_of_torch_observers(graph: Graph) -> None:
    recipe = plan(graph, {"a/conv2d#0:weight": S8}, batches())
    weight = graph.module.state_dict()["inner.a.weight"]
    oracle = PerChannelMinMaxObserver(ch_axis=0, dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
    oracle(weight)
    scale, _ = oracle.calculate_qparams()
    (edit,) = recipe.rounds
    assert isinstance(edit.grid, Affine)
    # torch divides by 127.5, which leaves the largest weight half a step outside of its own grid.
    torch.testing.assert_close(edit.grid.scale * 127, scale * 127.5, rtol=1e-5, atol=0)


def test_a_range_ends_where_all_readers_end(graph: Graph) -> None:
    site = next(name for name in operators(graph) if "mul" in name)
    recipe = plan(graph, {f"{site}:output": U8}, batches(), ranges=MinMax())
    (edit,) = recipe.rounds
    assert isinstance(edit.grid, Affine)
    assert max(float(value.max()) for value in values_at(graph, site, batches())) > 6
    assert float(edit.grid.scale) * 255 == pytest.approx(6.0, rel=1e-5)


@pytest.mark.parametrize("ranges", ["minmax", "mse"])
def test_tied_sites_share_the_union_of_their_ranges(graph: Graph, ranges: str) -> None:
    tied = Precision(8, signed=False, tie="cat")
    sites = {"b/conv2d#0:output": tied, "/relu#0:output": tied}
    recipe = plan(graph, sites, batches(), **({"ranges": MinMax()} if ranges == "minmax" else {}))
    first, second = (edit.grid for edit in recipe.rounds)
    assert isinstance(first, Affine)
    assert isinstance(second, Affine)
    assert torch.equal(first.scale, second.scale)
    assert torch.equal(first.zero_point, second.zero_point)
    assert int(first.zero_point) > 0
    alone = plan(graph, {"/relu#0:output": U8}, batches(), ranges=MinMax()).rounds[0].grid
    assert isinstance(alone, Affine)
    assert int(alone.zero_point) == 0


def test_what_is_asked_for_is_planned_and_nothing_else(graph: Graph) -> None:
    asked = place(graph, RULES, Bits(4, 8))
    state = {name: value.clone() for name, value in graph.module.state_dict().items()}
    data = batches()
    recipe = Nearest().plan(graph, data, asked, rng=generator(0))
    again = Nearest().plan(graph, data, asked, rng=generator(1))
    assert sorted(edit.site for edit in recipe.rounds) == sorted(asked)
    grids = {edit.site: edit.grid for edit in recipe.rounds}
    for site, wanted in asked.items():
        grid = grids[site]
        assert isinstance(grid, Affine)
        assert grid.bits == wanted.bits
        assert grid.axis == wanted.axis
    x = batches(1)[0]
    assert torch.equal(realise(graph, recipe).module(x), realise(graph, again).module(x))
    assert all(torch.equal(value, state[name]) for name, value in graph.module.state_dict().items())
    assert all(torch.equal(one, other) for one, other in zip(data, batches(), strict=True))
    narrow = Precision(16, float_type="bf16")
    assert plan(graph, {"b/conv2d#0:output": narrow}, data).rounds[0].grid == FloatType("bf16")


def test_bad_calibration_is_refused(graph: Graph) -> None:
    with pytest.raises(BadInput, match="no calibration data"):
        plan(graph, {"b/conv2d#0:output": U8}, [])
    told = r"^an activation that is not finite at b/conv2d#0:output; [^\n]*check the data$"
    for bad in (math.nan, math.inf):
        with pytest.raises(BadInput, match=told):
            plan(graph, {"b/conv2d#0:output": U8}, [torch.full((2, 3, 12, 12), bad)])


def coarse(graph: Graph, bits: int = 3) -> list[Round]:
    state = graph.module.state_dict()
    wanted = Precision(bits, signed=True, symmetric=True, axis=0, narrow=True)
    return [
        Round(Site.parse(f"{name}:weight"), weight_grid(state[key], wanted))
        for name, key in (("a/conv2d#0", "inner.a.weight"), ("head/linear#0", "inner.head.weight"))
    ]


def test_the_correction_of_one_operator_is_the_mean_input_times_the_weight_error(graph: Graph) -> None:
    rounds = coarse(graph)[1:]
    (edit,) = correct_biases(graph, batches(), rounds)
    state = graph.module.state_dict()
    read = operators(graph)["head/linear#0"].args[0]
    name = next(name for name, node in operators(graph).items() if node is read)
    mean = torch.cat(values_at(graph, name, batches())).double().mean(0)
    grid = rounds[0].grid
    assert isinstance(grid, Affine)
    weight = state["inner.head.weight"].double().numpy()
    step = grid.scale.double().numpy()[:, None]
    error = weight - np.clip(np.rint(weight / step), *grid.codes) * step
    wanted = state["inner.head.bias"].double().numpy() + error @ mean.numpy()
    np.testing.assert_allclose(edit.value.numpy(), wanted, rtol=1e-4, atol=1e-6)


def test_after_the_correction_mean_outputs_are_those_of_the_float_graph(graph: Graph) -> None:
    rounds = [*coarse(graph), Round(Site.parse("b/conv2d#0:output"), grid_for(-1.0, 1.0, Precision(4, signed=False)))]
    edits = correct_biases(graph, batches(), rounds)
    assert [str(edit.site) for edit in edits] == ["a/conv2d#0:bias", "head/linear#0:bias"]
    plain = realise(graph, Recipe(tuple(rounds), signature(graph)))
    corrected = realise(graph, Recipe((*edits, *rounds), signature(graph)))
    for name, dims in (("a/conv2d#0", (0, 2, 3)), ("head/linear#0", (0,))):
        wanted, before, after = (
            torch.cat(values_at(which, name, batches())).double().mean(dims) for which in (graph, plain, corrected)
        )
        assert float((after - wanted).abs().max()) < 1e-5
        assert float((before - wanted).abs().max()) > 1e-2


def test_the_correction_stays_within_its_memory(graph: Graph) -> None:
    least = correct_biases(graph, batches(), coarse(graph), memory_bytes=1)
    first = correct_biases(graph, batches(1), coarse(graph))
    whole = correct_biases(graph, batches(), coarse(graph))
    assert all(torch.equal(one.value, other.value) for one, other in zip(least, first, strict=True))
    assert not all(torch.equal(one.value, other.value) for one, other in zip(least, whole, strict=True))
    assert all(isinstance(edit, Replace) for edit in whole)


def test_the_ratio_of_each_site_is_that_of_its_values(graph: Graph) -> None:
    asked = place(graph, RULES, Bits(4, 4))
    recipe = Nearest(equalization="none").plan(graph, batches(), asked, rng=generator(0))
    quiet = realise(graph, Recipe(tuple(e for e in recipe.edits if not isinstance(e, Round)), recipe.signature))
    found = {error.site: error for error in site_errors(graph, recipe, batches())}
    assert set(found) == set(asked)
    for edit in recipe.rounds:
        if edit.site.port != "output" or not isinstance(edit.grid, Affine):
            continue
        x = torch.cat(values_at(quiet, edit.site.operator, batches())).double().numpy()
        scale, zero = float(edit.grid.scale), int(edit.grid.zero_point)
        near = (np.clip(np.rint(x / scale) + zero, *edit.grid.codes) - zero) * scale
        wanted = 10 * math.log10((x**2).sum() / ((near - x) ** 2).sum())
        assert found[edit.site].sqnr_db == pytest.approx(wanted, abs=0.01)
        assert found[edit.site].bits == edit.grid.bits


@pytest.mark.parametrize("planted", ["a/conv2d#0:weight", "b/conv2d#0:output", "image/placeholder#0:output"])
def test_the_site_with_the_coarsest_grid_is_to_blame(graph: Graph, planted: str) -> None:
    data = batches()
    names = {name.split("/")[0]: name for name in operators(graph) if "placeholder" in name}
    sites = {"a/conv2d#0:weight": S8, "b/conv2d#0:output": U8, f"{next(iter(names.values()))}:output": U8}
    planted = planted if planted in sites else next(text for text in sites if "placeholder" in text)
    coarse = Precision(2, signed=sites[planted].signed, symmetric=sites[planted].symmetric, axis=sites[planted].axis)
    recipe = plan(graph, {**sites, planted: coarse}, data)
    (worst, error), *rest = blame(graph, recipe, data[0])
    assert str(worst) == planted
    assert all(error > other for _, other in rest)
