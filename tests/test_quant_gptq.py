"""GPTQ against the formulas of the optimal brain surgeon, and what weights alone in groups mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers_graphs import answer, captured, inputs_of

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.grids import Affine, Grouped
from seatrial.core.insert_round import fake
from seatrial.core.precision import Bits, Precision, WeightBits, parse_bits
from seatrial.core.realise import realise, source
from seatrial.core.recipe import Recipe, Replace, Round
from seatrial.core.sites import Site, operators, signature, site_of
from seatrial.errors import BadInput
from seatrial.numerics.observe import watch
from seatrial.numerics.ranges import weight_grid
from seatrial.quant.gptq import GPTQ
from seatrial.quant.nearest import Nearest
from seatrial.quant.staged_run import StagedRun, gram_of
from seatrial.quant.weight_grids import RangeSearch, grouped_grid
from seatrial.quant.weight_only import weight_only

RTN = Nearest(bias_correction=False)
GROUPS = Precision(4, signed=False, group=8)
CHANNELS = Precision(4, signed=True, symmetric=True, axis=0)


def correlated(rows: int, columns: int, seed: int) -> Tensor:
    """Inputs whose channels share a few causes, and differ in size."""
    rng = np.random.default_rng(seed)
    causes = rng.standard_normal((rows, 4)) @ rng.standard_normal((4, columns))
    mixed = (causes + 0.3 * rng.standard_normal((rows, columns))) * np.exp(rng.standard_normal(columns))
    return torch.from_numpy(mixed)


def surgeon(weight: np.ndarray, gram: np.ndarray, grid_at: object, order: list[int], damping: float) -> np.ndarray:
    """Round column after column; after each, all that are left move by the optimal brain surgeon's formula."""
    hessian = gram + damping * gram.diagonal().mean() * np.eye(len(gram))
    work = weight.copy()
    for done, column in enumerate(order):
        left = order[done:]
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        scale, zero, (low, high) = grid_at(work, column)  # pyright: ignore[reportCallIssue]
        rounded = (np.clip(np.rint(work[:, column] / scale) + zero, low, high) - zero) * scale
        change = (work[:, column] - rounded) / inverse[0, 0]
        work[:, left] -= np.outer(change, inverse[0])
        work[:, column] = rounded
    return work


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("wanted", [GROUPS, CHANNELS], ids=["groups", "channels"])
def test_columns_are_rounded_by_the_optimal_brain_surgeon(wanted: Precision, act_order: bool) -> None:
    x = correlated(200, 20, 0)
    weight = torch.from_numpy(np.random.default_rng(1).standard_normal((6, 20)))
    gram = x.T @ x
    found, grid = GPTQ(act_order=act_order, search=None).rounded(weight, gram, wanted)
    fixed = weight_grid(weight, wanted) if wanted.group is None else grouped_grid(weight, wanted)

    def grid_at(work: np.ndarray, column: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        if isinstance(fixed, Affine):
            return fixed.scale.float().double().numpy(), fixed.zero_point.numpy(), fixed.codes
        start = column - column % 8
        if act_order:
            part, at = fixed, column // 8
        else:  # the group as it is when its first column comes
            part, at = fresh.setdefault(start, grouped_grid(torch.from_numpy(work[:, start : start + 8]), wanted)), 0
        return part.scale[:, at].double().numpy(), part.zero_point[:, at].numpy(), (0, 15)

    fresh: dict[int, Grouped] = {}
    order = torch.argsort(gram.diagonal(), descending=True).tolist() if act_order else list(range(20))
    wanted_weight = surgeon(weight.numpy(), gram.numpy(), grid_at, order, 0.01)
    np.testing.assert_allclose(found.numpy(), wanted_weight, rtol=1e-6, atol=1e-9)
    assert torch.equal(fake(found, grid), found)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([GROUPS, CHANNELS]), st.booleans())
def test_outputs_of_correlated_inputs_are_nearer_than_those_of_nearest_codes(
    seed: int, wanted: Precision, act_order: bool
) -> None:
    x = correlated(300, 40, seed).float()
    weight = torch.from_numpy(np.random.default_rng(seed + 1).standard_normal((16, 40)).astype(np.float32))
    found, grid = GPTQ(act_order=act_order, search=None).rounded(weight, x.T @ x, wanted)
    nearest = fake(weight, grouped_grid(weight, wanted) if wanted.group else weight_grid(weight, wanted))
    assert torch.equal(fake(found, grid), found)
    assert float((x @ (found - weight).T).square().sum()) < float((x @ (nearest - weight).T).square().sum())


def test_inputs_that_tell_nothing_leave_the_nearest_codes() -> None:
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    for gram in (torch.eye(12), torch.zeros(12, 12), torch.diag(torch.arange(12.0))):
        found, grid = GPTQ(search=None).rounded(weight, gram, GROUPS)
        assert torch.equal(found, fake(weight, grouped_grid(weight, GROUPS)))
        assert torch.equal(fake(found, grid), found)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(24, 24), nn.Linear(24, 16, bias=False), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x.flatten(2)).relu()))


def chain() -> tuple[Graph, list[Tensor]]:
    torch.manual_seed(0)
    batches = list(correlated(4 * 6 * 3, 24, 2).float().reshape(4, 6, 3, 4, 6))
    return capture(Chain(), batches[0]), batches


def test_later_operators_see_what_earlier_ones_give_when_rounded() -> None:
    graph, batches = chain()
    sites = weight_only(graph, 4, 8)
    recipe = GPTQ(RTN).plan(graph, batches, sites, rng=generator(0, "gptq"))
    assert [str(edit.site) for edit in recipe.rounds] == ["first/linear#0:weight", "second/linear#0:weight"]
    half = realise(graph, Recipe(recipe.edits[:2], signature(graph)))
    read: list[Tensor] = []
    node = source(operators(half)["second/linear#0"], "input0")
    watch(half, batches, {node: lambda value: read.append(value.flatten(0, 1))})
    rows = torch.cat(read)
    weight = dict(graph.module.named_parameters())["inner.second.weight"].detach()
    found, _ = GPTQ(RTN).rounded(weight, rows.T @ rows, sites[site_of("second/linear#0", "weight")])
    replaced = recipe.edits[2]
    assert isinstance(replaced, Replace)
    torch.testing.assert_close(found, replaced.value)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_weights_lie_on_their_grids_and_padding_plays_no_part(name: str) -> None:
    graph, inputs = captured(name), inputs_of(name)
    assert isinstance(inputs, dict)
    sites = weight_only(graph, 4, 16)
    recipe = GPTQ(RTN).plan(graph, [inputs], sites, rng=generator(0, name))
    assert {edit.site for edit in recipe.rounds} == set(sites)
    values = {edit.site: edit.value for edit in recipe.edits if isinstance(edit, Replace)}
    for edit in recipe.rounds:
        assert torch.equal(fake(values[edit.site], edit.grid), values[edit.site])
    filled = {**inputs, "input_ids": torch.where(inputs["attention_mask"] > 0, inputs["input_ids"], 7)}
    again = GPTQ(RTN).plan(graph, [filled], sites, rng=generator(0, name))
    for one, other in zip(recipe.edits, again.edits, strict=True):
        if isinstance(one, Replace):
            assert isinstance(other, Replace)
            assert torch.equal(one.value, other.value)
    # Better than the nearest codes on what it was calibrated on.
    nearest = RTN.plan(graph, [inputs], sites, rng=generator(0, name))
    whole = answer(graph, inputs)
    off = [float((answer(realise(graph, plan), inputs) - whole).norm()) for plan in (recipe, nearest)]
    assert off[0] < off[1]


def test_a_staged_run_sees_what_a_whole_one_does() -> None:
    graph, inputs = captured("bert"), [inputs_of("bert", seed) for seed in range(3)]
    named = operators(graph)
    stops = {source(node, "input0"): name for name, node in named.items() if "/linear#" in name}
    wanted: dict[str, list[Tensor]] = {name: [] for name in stops.values()}
    watch(graph, inputs, {node: wanted[name].append for node, name in stops.items()})
    run = StagedRun(graph, inputs, stops)
    reached = []
    for stop in run:
        reached.append(stops[stop])
        values = [value for value, _ in run.seen()]
        assert all(torch.equal(one, other) for one, other in zip(values, wanted[stops[stop]], strict=True))
        rows = torch.cat([value.reshape(-1, value.shape[-1]) for value in values]).double()
        if values[0].ndim == 3:
            kept = torch.cat([batch["attention_mask"].reshape(-1) for batch in inputs if isinstance(batch, dict)])
            rows = rows[kept > 0]
        torch.testing.assert_close(gram_of(run, "x"), rows.T @ rows, rtol=1e-5, atol=1e-5)
    assert reached == list(stops.values())


def test_the_rest_is_left_to_the_grids() -> None:
    graph, batches = chain()
    sites = weight_only(graph, 4, None, head=True)
    sites[site_of("second/linear#0", "input0")] = Precision(8)
    recipe = GPTQ().plan(graph, batches, sites, rng=generator(0, "rest"))
    assert {edit.site for edit in recipe.rounds} == set(sites)
    assert all(isinstance(edit.grid, Affine) for edit in recipe.rounds)


def test_bad_input_is_named() -> None:
    graph, batches = chain()
    sites = weight_only(graph, 4, 8)
    with pytest.raises(BadInput, match="no calibration data"):
        GPTQ().plan(graph, [], sites, rng=generator(0, "bad"))
    with pytest.raises(BadInput, match="not finite at first/linear#0:input0"):
        GPTQ().plan(graph, [batches[0] / 0], sites, rng=generator(0, "bad"))
    with pytest.raises(BadInput, match="damping"):
        GPTQ(damping=0.0)


# Grids of groups, and where they stand


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 8]), st.sampled_from([1, 5, 16, 40]), st.booleans())
def test_the_grid_of_a_group_is_that_of_its_values_alone(seed: int, bits: int, group: int, symmetric: bool) -> None:
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy((rng.standard_normal((3, 21)) + rng.uniform(-2, 2)).astype(np.float32))
    wanted = Precision(bits, signed=False, symmetric=symmetric, group=group)
    grid = grouped_grid(weight, wanted)
    top = 2**bits - 1
    for row in range(3):
        for index, start in enumerate(range(0, 21, group)):
            values = weight[row, start : start + group].numpy()
            low, high = min(values.min(), 0), max(values.max(), 0)
            if symmetric:
                low, high = -max(-low, high), max(-low, high)
            scale = (high - low) / top
            assert np.isclose(float(grid.scale[row, index]), scale, rtol=1e-6)
            zero = (top + 1) // 2 if symmetric else np.rint(-low / np.float32(scale))
            assert int(grid.zero_point[row, index]) == zero
    steps = torch.repeat_interleave(grid.scale, group, 1)[:, :21]
    # Half a step, and another half at an end that the rounded zero point moved away from.
    assert bool(((fake(weight, grid) - weight).abs() <= steps * 1.001).all())


@pytest.mark.parametrize("symmetric", [False, True])
def test_searched_ranges_have_the_least_error_of_those_tried(symmetric: bool) -> None:
    weight = torch.from_numpy(np.random.default_rng(0).standard_t(2, (4, 32)).astype(np.float32))
    wanted, search = Precision(3, signed=False, symmetric=symmetric, group=16), RangeSearch(20, 0.2, 2.4)
    found = fake(weight, grouped_grid(weight, wanted, search))
    for row in range(4):
        for start in (0, 16):
            values = weight[row : row + 1, start : start + 16]
            errors = []
            for step in range(16):
                share = 1 - step / 20
                shrunk = grouped_grid(values * share, wanted)  # the grid of a range cut to a share
                errors.append(float((fake(values, shrunk) - values).abs().pow(2.4).sum()))
            mine = float((found[row, start : start + 16] - values).abs().pow(2.4).sum())
            assert np.isclose(mine, min(errors), rtol=1e-4)


def test_a_group_of_zeros_and_weights_that_do_not_fit() -> None:
    weight = torch.zeros(2, 8)
    assert torch.equal(fake(weight, grouped_grid(weight, GROUPS, RangeSearch())), weight)
    for bad, wanted in ((torch.zeros(2, 3, 1, 1), GROUPS), (weight, Precision(4, signed=True, group=8))):
        with pytest.raises(BadInput):
            grouped_grid(bad, wanted)
    with pytest.raises(BadInput, match="not finite"):
        grouped_grid(weight / 0, GROUPS)


def test_linear_weights_are_asked_for_but_for_the_last_and_those_kept() -> None:
    graph = captured("llama")
    sites = weight_only(graph, 4, 32)
    assert len(sites) == 14
    assert set(sites.values()) == {Precision(4, signed=False, group=32)}
    assert not any("lm_head" in str(site) or "embed" in str(site) for site in sites)
    assert Site.parse("lm_head/linear#0:weight") in weight_only(graph, 4, 32, head=True)
    kept = weight_only(graph, 4, 32, keep=["*.mlp.*"])
    assert len(kept) == 8
    with pytest.raises(BadInput, match="--keep 'nothing'"):
        weight_only(graph, 4, 32, keep=["nothing"])
    with pytest.raises(BadInput, match="before its head"):
        weight_only(capture(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.rand(2, 3, 2, 2)), 4, 8)


def test_bits_of_weights_alone_are_read() -> None:
    assert parse_bits("w4") == WeightBits(4)
    assert str(parse_bits("W8")) == "w8"
    assert parse_bits("w4a16") == Bits(4, 16)
    for text in ("w1", "w16", "4", "w4a"):
        with pytest.raises(BadInput):
            parse_bits(text)


@pytest.mark.parametrize("bias_correction", [False, True])
def test_nearest_codes_in_groups_and_their_biases(bias_correction: bool) -> None:
    graph, batches = chain()
    sites = weight_only(graph, 3, 8)
    recipe = Nearest(bias_correction=bias_correction).plan(graph, batches, sites, rng=generator(0, "rtn"))
    grids = [edit for edit in recipe.edits if isinstance(edit, Round)]
    assert all(isinstance(edit.grid, Grouped) and edit.grid.group == 8 for edit in grids)
    assert sum(isinstance(edit, Replace) for edit in recipe.edits) == 2 * bias_correction
    rounded, whole = realise(graph, recipe), graph
    drift = torch.stack([answer(rounded, batch) - answer(whole, batch) for batch in batches]).flatten(0, 2).mean(0)
    if bias_correction:
        assert float(drift.abs().max()) < 1e-5
