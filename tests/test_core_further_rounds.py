"""Dynamic, grouped, logarithmic and twin grids: against NumPy loops, through files, and on the runtimes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seatrial.core.graph import Graph, capture
from seatrial.core.grids import Dynamic, Grid, Grouped, Logarithmic, Twin
from seatrial.core.insert_round import fake
from seatrial.core.realise import realise
from seatrial.core.recipe import Recipe, Round
from seatrial.core.sites import Site, signature
from seatrial.deploy.onnx_export import export_onnx
from seatrial.errors import BadInput


def one(value: float) -> Tensor:
    return torch.tensor(value)


def by_loop(row: np.ndarray, bits: int, symmetric: bool) -> np.ndarray:
    """One row on the affine grid of its own range, by the book."""
    low, high = min(row.min(), 0), max(row.max(), 0)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = np.float32(max(-low, high)) / np.float32(top)
        return np.clip(np.rint(row / scale), -top, top) * scale
    scale = np.float32(high - low) / np.float32(2**bits - 1)
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(row / scale) + zero, 0, 2**bits - 1) - zero) * scale


@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 4, 8]), st.booleans(), st.sampled_from([None, 4, 5, 12]))
def test_dynamic_rows_are_rounded_by_their_own_range(seed: int, bits: int, symmetric: bool, group: int | None) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((2, 3, 12)) * rng.uniform(0.01, 30, (2, 3, 1))).astype(np.float32)
    found = fake(torch.from_numpy(x), Dynamic(bits, symmetric, group)).numpy()
    for place in np.ndindex(2, 3):
        pieces = [x[place][start : start + (group or 12)] for start in range(0, 12, group or 12)]
        wanted = np.concatenate([by_loop(piece, bits, symmetric) for piece in pieces])
        np.testing.assert_allclose(found[place], wanted, rtol=1e-6, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 8]), st.sampled_from([4, 5]))
def test_grouped_rows_are_rounded_by_the_grid_of_their_group(seed: int, bits: int, group: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, 12)).astype(np.float32)
    scale = rng.uniform(0.01, 1, (3, -(-12 // group))).astype(np.float32)
    zero = rng.integers(0, 2**bits, scale.shape)
    found = fake(torch.from_numpy(x), Grouped(bits, torch.from_numpy(scale), torch.from_numpy(zero), group)).numpy()
    for row, column in np.ndindex(x.shape):
        s, z = scale[row, column // group], zero[row, column // group]
        wanted = (np.clip(np.rint(x[row, column] / s) + z, 0, 2**bits - 1) - z) * s
        assert math.isclose(found[row, column], wanted, rel_tol=1e-6, abs_tol=1e-7)


@pytest.mark.parametrize("steps", [1, 2])
def test_logarithmic_values_are_the_nearest_powers_in_the_exponent(steps: int) -> None:
    x = torch.rand(200, generator=torch.Generator().manual_seed(0))
    found = fake(x, Logarithmic(4, one(0.9), steps))
    powers = 0.9 * 2.0 ** (-np.arange(16) / steps)
    for value, rounded in zip(x.tolist(), found.tolist(), strict=True):
        distance = np.abs(np.log2(value / powers))
        if math.log2(value / powers[-1]) * steps < -0.5:
            assert rounded == 0
        else:
            assert math.isclose(rounded, powers[distance.argmin()], rel_tol=1e-5)
    assert fake(torch.zeros(2), Logarithmic(4, one(1.0))).tolist() == [0, 0]


def test_twin_grids_share_the_codes_by_size_or_by_sign() -> None:
    small = fake(torch.tensor([0.0, 0.011, 0.069, 0.071, 0.5, 2.0]), Twin(4, one(0.01), one(0.2)))
    torch.testing.assert_close(small, torch.tensor([0.0, 0.01, 0.07, 0.0, 0.4, 1.4]))
    signs = fake(torch.tensor([-1.0, -0.034, 0.0, 0.25, 9.0]), Twin(4, one(0.01), one(0.2), by_sign=True))
    torch.testing.assert_close(signs, torch.tensor([-0.08, -0.03, 0.0, 0.2, 1.4]))


GRIDS: list[Grid] = [
    Dynamic(8),
    Dynamic(6, symmetric=True),
    Dynamic(4, group=5),
    Dynamic(4, symmetric=True, group=4),
    Logarithmic(4, one(1.0), 2),
    Twin(4, one(0.01), one(0.1)),
    Twin(4, one(0.02), one(0.1), by_sign=True),
]
NAMES = ["token", "token-symmetric", "token-group", "token-group-symmetric", "log-sqrt2", "twin", "twin-sign"]
SITE = Site.parse("second/linear#0:input0")
IDS = torch.arange(35).reshape(5, 7)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(40, 12), nn.Linear(12, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.second(self.first(ids).softmax(-1))


def two() -> Graph:
    torch.manual_seed(0)
    return capture(Two(), {"ids": torch.ones(2, 3, dtype=torch.int64)})


def rounded(graph: Graph, grid: Grid, site: Site = SITE) -> Graph:
    return realise(graph, Recipe((Round(site, grid),), signature(graph)))


@pytest.mark.parametrize("grid", GRIDS, ids=NAMES)
def test_the_file_answers_as_the_simulation(grid: Grid, tmp_path: Path) -> None:
    graph = rounded(two(), grid)
    path = export_onnx(graph, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path)
    told = session.run(None, {session.get_inputs()[0].name: IDS.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(told, graph.module(IDS).numpy(), rtol=1e-5, atol=1e-6)


GROUPED = Grouped(4, torch.full((4, 3), 0.3), torch.full((4, 3), 8), 5)


@pytest.mark.parametrize("grid", [*GRIDS, GROUPED], ids=[*NAMES, "grouped"])
def test_a_saved_recipe_gives_the_same_graph(grid: Grid, tmp_path: Path) -> None:
    graph = two()
    site = Site.parse("second/linear#0:weight") if isinstance(grid, Grouped) else SITE
    recipe = Recipe((Round(site, grid),), signature(graph))
    recipe.save(tmp_path / "recipe")
    with torch.no_grad():
        first, second = (realise(graph, r).module(IDS) for r in (recipe, Recipe.load(tmp_path / "recipe")))
        assert torch.equal(first, second)
        assert not torch.equal(first, graph.module(IDS))


def test_a_grouped_weight_is_exported_as_its_values(tmp_path: Path) -> None:
    graph = rounded(
        two(), Grouped(4, torch.full((4, 3), 0.05), torch.full((4, 3), 8), 5), Site.parse("second/linear#0:weight")
    )
    path = export_onnx(graph, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path)
    told = session.run(None, {session.get_inputs()[0].name: IDS.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(told, graph.module(IDS).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=NAMES)
def test_gradients_pass_inside_and_stop_outside(grid: Grid) -> None:
    x = torch.tensor([[0.01, 0.05, 0.5, 0.2]], requires_grad=True)
    fake(x, grid).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(1, 4))
    if isinstance(grid, Twin | Logarithmic):
        far = torch.tensor([[50.0]], requires_grad=True)
        fake(far, grid).sum().backward()
        assert far.grad is not None
        assert torch.equal(far.grad, torch.zeros(1, 1))


def test_grids_that_do_not_fit_are_refused() -> None:
    graph, weight = two(), Site.parse("second/linear#0:weight")
    with pytest.raises(BadInput, match="one value for each row and group"):
        rounded(graph, Grouped(4, torch.ones(4, 2), torch.zeros(4, 2, dtype=torch.int64), 5), weight)
    with pytest.raises(BadInput, match="one for the tensor"):
        rounded(graph, Logarithmic(4, torch.ones(12)))
    with pytest.raises(BadInput, match="scale that is not positive"):
        rounded(graph, Twin(4, one(0.0), one(1.0)))
