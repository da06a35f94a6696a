"""RepQ-ViT: the function stays, one grid holds what a grid for each channel held, percentiles are those of the data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn
from transformers_graphs import answer, captured, inputs_of

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.grids import Affine, Dynamic, FloatType, Grid, Logarithmic
from seatrial.core.insert_round import fake
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits, Precision
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise, source
from seatrial.core.recipe import Migrate, Recipe
from seatrial.core.sites import Site, op_name, operators, signature
from seatrial.errors import BadInput
from seatrial.numerics.observe import watch
from seatrial.numerics.ranges import MinMax, Observed, grid_for
from seatrial.quant.migration_places import migration_places
from seatrial.quant.nearest import Nearest
from seatrial.quant.percentile_init import (
    BestPercentile,
    channel_grids,
    logarithmic_grid,
    percentile_weight_grid,
)
from seatrial.quant.placement import place
from seatrial.quant.repq_vit import RepQViT

RULES = PlacementRules("torch", "by-range", operator_outputs=False, attention_products="all")
UNSIGNED = PlacementRules("unsigned", "unsigned", operator_outputs=True, attention_products="all")
SHARES = (0.99, 0.999)
METHOD = RepQViT(shares=SHARES)


def asked(graph: Graph, bits: str = "w4a4", rules: PlacementRules = RULES) -> dict[Site, Precision]:
    return place(graph, rules, Bits.parse(bits), keep=[f"*={bits}"])


def planned(kind: str, wanted: Mapping[Site, Precision], method: Quantizer = METHOD) -> Recipe:
    calibration = [inputs_of(kind, seed, 3) for seed in (5, 6)]
    recipe = method.plan(captured(kind), calibration, wanted, rng=generator(0, "plan"))
    assert {edit.site for edit in recipe.rounds} == set(wanted)
    return recipe


def migrations(recipe: Recipe) -> list[Migrate]:
    return [edit for edit in recipe.edits if isinstance(edit, Migrate)]


def grids(recipe: Recipe) -> dict[Site, Grid]:
    return {edit.site: edit.grid for edit in recipe.rounds}


def seen_at(graph: Graph, kind: str, node: str, port: str = "output") -> np.ndarray:
    """What stands at a port on the calibration data, as rows of channels, without what fills sentences up."""
    found: list[Tensor] = []
    value, batches = source(operators(graph)[node], port), [inputs_of(kind, seed, 3) for seed in (5, 6)]
    watch(graph, batches, {value: found.append})
    rows = np.concatenate([value.numpy().reshape(-1, value.shape[-1]) for value in found])
    kept = [batch["attention_mask"].numpy().ravel() > 0 for batch in batches if isinstance(batch, dict)]
    return rows[np.concatenate(kept)] if kept else rows


def channelwise(rows: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Oracle: scale and zero point of each channel by itself, the best of SHARES."""
    scales, zeros = [], []
    for channel in rows.astype(np.float64).T:
        tried = []
        for share in SHARES:
            low, high = np.quantile(channel, 1 - share), np.quantile(channel, share)
            scale = (high - low) / (2**bits - 1)
            zero = np.rint(-low / scale)
            codes = np.clip(np.rint(channel / scale) + zero, 0, 2**bits - 1)
            tried.append((np.square((codes - zero) * scale - channel).sum(), scale, zero))
        _, scale, zero = min(tried)
        scales.append(scale)
        zeros.append(zero)
    return np.array(scales), np.array(zeros)


@pytest.mark.parametrize("kind", ["vit", "swin", "bert", "llama", "opt", "bloom"])
def test_the_migrated_network_is_the_same_function(kind: str) -> None:
    graph = captured(kind)
    found = migrations(planned(kind, asked(graph)))
    assert len(found) >= 5
    moved = realise(graph, Recipe(tuple(found), signature(graph)))
    one, other = (answer(version, inputs_of(kind, 9)) for version in (moved, graph))
    assert float((one - other).norm() / other.norm()) < 1e-5
    assert all(bool(edit.shift.any()) == (kind != "llama") for edit in found)  # an RMS norm has no offset


PLACES = {
    ("vit", 0): "blocks.0.norm1/layer_norm#0:output",
    ("vit", 4): "/select#0:output",
    ("swin", 2): "layers.0.blocks.1/reshape#2:output",
    ("swin", 9): "head.global_pool.pool/mean#0:output",
    ("bert", 1): "bert.encoder.layer.0.intermediate.dense/linear#0:input0",
}


@pytest.mark.parametrize(("kind", "number"), PLACES)
def test_one_grid_holds_what_a_grid_of_each_channel_held(kind: str, number: int) -> None:
    """Oracle: Li et al. 2023, eq. 13 to 18, on the values themselves: the codes before and behind are equal."""
    graph, recipe = captured(kind), planned(kind, asked(captured(kind)))
    one = migration_places(graph, gated=False)[number]
    edit = next(edit for edit in migrations(recipe) if edit.producer.operator == one.producer)
    assert [site.operator for site in edit.consumers] == list(one.consumers)
    rows = seen_at(graph, kind, one.consumers[0], "input0")
    scale, zero = channelwise(rows, 4)
    together = float(np.clip(np.rint(zero.mean()), 0, 15))
    np.testing.assert_allclose(edit.scale.numpy(), scale / scale.mean(), rtol=1e-4)
    np.testing.assert_allclose(edit.shift.numpy(), -scale * (zero - together), rtol=1e-3, atol=1e-5)
    grid = grids(recipe)[Site.parse(PLACES[kind, number])]
    assert isinstance(grid, Affine)
    assert (grid.bits, grid.signed, grid.axis, float(grid.zero_point)) == (4, False, None, together)
    assert float(grid.scale) == pytest.approx(scale.mean(), rel=1e-4)
    moved = realise(graph, Recipe(tuple(migrations(recipe)), signature(graph)))
    behind = seen_at(moved, kind, one.consumers[0], "input0").astype(np.float64)
    before = np.clip(np.rint(rows / scale) + zero, 0, 15)
    codes = np.clip(np.rint(behind / float(grid.scale)) + together, 0, 15)
    assert (codes == before).mean() > 0.999  # but for ties between two codes
    # And the other way round: what the weights read is the channel-wise rounded value.
    back = (codes - together) * float(grid.scale) * edit.scale.numpy() + edit.shift.numpy()
    np.testing.assert_allclose(back[codes == before], ((before - zero) * scale)[codes == before], rtol=1e-3, atol=1e-4)


def test_two_channels_by_hand() -> None:
    """4 bits: 0 to 15 and -30 to 15 have s = (1, 3), z = (0, 10); so s = 2, z = 5, r1 = (0.5, 1.5), r2 = (-5, 5)."""
    norm = nn.LayerNorm(2)
    module = nn.Sequential(nn.Flatten(), norm, nn.Linear(2, 3))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([7.5, 22.5]))
        norm.bias.copy_(torch.tensor([7.5, -7.5]))
    graph = capture(module, torch.rand(2, 2, 1, 1))
    pictures = torch.tensor([[0.0, 1000.0], [1000.0, 0.0]]).reshape(2, 2, 1, 1)  # normalized to -1 and 1
    site = Site.parse("1/layer_norm#0:output")
    recipe = RepQViT(shares=(1.0,)).plan(graph, [pictures], {site: Precision(4)}, rng=generator(0))
    (edit,) = migrations(recipe)
    torch.testing.assert_close(edit.scale, torch.tensor([0.5, 1.5]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(edit.shift, torch.tensor([5.0, -15.0]), rtol=1e-4, atol=1e-4)
    grid = grids(recipe)[site]
    assert isinstance(grid, Affine)
    assert float(grid.scale) == pytest.approx(2, rel=1e-4)
    assert int(grid.zero_point) == 5


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_outputs_are_nearer_than_those_of_min_max(kind: str) -> None:
    graph, inputs = captured(kind), inputs_of(kind, 9)
    plain = Nearest(MinMax(), bias_correction=False, equalization="none")
    moved = []
    for method in (RepQViT(), plain):
        rounded = realise(graph, planned(kind, asked(graph), method))
        moved.append(float((answer(rounded, inputs) - answer(graph, inputs)).norm()))
    assert moved[0] < 0.7 * moved[1]


def test_softmax_goes_to_roots_of_two() -> None:
    graph = captured("vit")
    edge = Site.parse("blocks.1.attn/matmul#1:input0")
    wanted = {site: one for site, one in asked(graph).items() if "blocks.1.attn/softmax" not in str(site)}
    found = grids(planned("vit", {**wanted, edge: Precision(3)}))
    for site, grid in found.items():
        behind = op_name(source(operators(graph)[site.operator], site.port)) == "softmax"
        assert isinstance(grid, Logarithmic if behind else Affine)
    grid = found[edge]
    assert isinstance(grid, Logarithmic)
    values = seen_at(graph, "vit", "blocks.1.attn/softmax#0").astype(np.float64)
    tried = []
    for top in (np.quantile(values, share) for share in SHARES):
        with np.errstate(divide="ignore"):
            codes = np.clip(np.rint(-2 * np.log2(values / top)), 0, None)
        rounded = np.where(codes < 8, top * 2 ** (-codes / 2), 0)
        tried.append((np.square(rounded - values).sum(), top))
    assert (grid.bits, grid.steps) == (3, 2)
    assert float(grid.scale) == pytest.approx(min(tried)[1], rel=1e-5)
    plain = grids(planned("vit", asked(graph), RepQViT(logarithmic=False)))
    assert all(isinstance(grid, Affine) for grid in plain.values())


def test_weights_are_calibrated_behind_the_migration() -> None:
    graph, recipe = captured("vit"), planned("vit", asked(captured("vit")))
    moved = realise(graph, Recipe(tuple(migrations(recipe)), signature(graph)))
    name = "blocks.0.mlp.fc1/linear#0"
    weight = moved.module.get_buffer(str(operators(moved)[name].args[1].target)).numpy().astype(np.float64)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    grid = grids(recipe)[Site.parse(f"{name}:weight")]
    assert isinstance(grid, Affine)
    assert grid.axis == 0
    for row, scale in zip(weight, grid.scale.numpy(), strict=True):
        tried = []
        for share in SHARES:
            low, high = np.quantile(row, 1 - share), np.quantile(row, share)
            step = max(-low, high) / 7
            tried.append((np.square(np.clip(np.rint(row / step), -7, 7) * step - row).sum(), step))
        assert float(scale) == pytest.approx(min(tried)[1], rel=1e-4)


@pytest.mark.parametrize("wanted", [Precision(4, signed=True, symmetric=True), Precision(4, axis=1), Precision(4)])
def test_a_weight_has_the_best_of_the_shares(wanted: Precision) -> None:
    made = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 40, generator=made) ** 3

    def error(grid: Affine) -> Tensor:
        squares = (fake(weight, grid) - weight).double().square()
        return squares.sum() if wanted.axis is None else squares.sum(1 - wanted.axis)

    single = [percentile_weight_grid(weight, wanted, (share,)) for share in (0.9, 0.97, 1.0)]
    best = percentile_weight_grid(weight, wanted, (0.9, 0.97, 1.0))
    torch.testing.assert_close(error(best), torch.stack([error(grid) for grid in single]).amin(0))
    assert best.axis == wanted.axis


def test_what_is_not_asked_for_as_plain_stays_as_it_is() -> None:
    graph = captured("vit")
    wanted = asked(graph)
    norms = [site for site in wanted if "norm" in str(site) or "select" in str(site)]
    assert len(norms) == 5
    others = (
        Precision(4, symmetric=True),
        Precision(4, signed=True),
        Precision(4, dynamic=True),
        Precision(16, float_type="fp16"),
        Precision(4, tie="a pair"),
    )
    recipe = planned("vit", {**wanted, **dict(zip(norms, others, strict=True))})
    assert migrations(recipe) == []
    assert "nothing was migrated" in recipe.notes[0]
    found = grids(recipe)
    assert found[norms[2]] == Dynamic(4)
    assert found[norms[3]] == FloatType("fp16")
    first, second = found[norms[0]], found[norms[1]]
    assert isinstance(first, Affine)
    assert isinstance(second, Affine)
    assert (first.signed, int(first.zero_point), second.signed) == (True, 0, True)
    softmax = Site.parse("blocks.0.attn/softmax#0:output")
    dynamic = planned("vit", {**wanted, softmax: Precision(4, dynamic=True)})
    assert grids(dynamic)[softmax] == Dynamic(4)


def test_readers_of_one_norm_with_other_bits() -> None:
    """The migration is that of the most bits; fewer bits have the same range."""
    kind = "bert"
    wanted = asked(captured(kind))
    edges = [site for site in wanted if "layer.0.attention.self" in str(site) and site.port == "input0"][:3]
    assert len({source(operators(captured(kind))[site.operator], "input0") for site in edges}) == 1
    recipe = planned(kind, {**wanted, edges[1]: Precision(6)})
    found = [grids(recipe)[site] for site in edges]
    assert [grid.bits for grid in found if isinstance(grid, Affine)] == [4, 6, 4]
    few, many = found[0], found[1]
    assert isinstance(few, Affine)
    assert isinstance(many, Affine)
    assert float(few.scale) == pytest.approx(float(many.scale) * 63 / 15, rel=1e-6)
    assert int(few.zero_point) == round(int(many.zero_point) * 15 / 63)
    whole = planned(kind, {**wanted, **dict.fromkeys(edges, Precision(6))})
    torch.testing.assert_close(migrations(recipe)[0].scale, migrations(whole)[0].scale)


def test_rounds_on_outputs_and_edges_are_the_rounds_of_the_place() -> None:
    wanted = asked(captured("swin"), rules=UNSIGNED)
    recipe = planned("swin", wanted)
    assert len(migrations(recipe)) == 10
    realise(captured("swin"), recipe)


def test_channels_that_do_not_change() -> None:
    rows = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    rows[:, 1], rows[:, 2] = 3.0, 0.0
    found = channel_grids(rows, 4)
    assert found is not None
    assert bool((found.scale > 0).all())
    rounded = ((rows / found.scale).round() + found.zero_point).clamp(0, 15).sub(found.zero_point) * found.scale
    torch.testing.assert_close(rounded[:, 1:3], rows[:, 1:3].double(), rtol=1e-3, atol=1e-3)
    assert channel_grids(torch.full((5, 3), 2.0), 4) is None
    assert logarithmic_grid([torch.zeros(3)], 4).scale == 1


@given(
    arrays.arrays(np.float32, st.integers(2, 400), elements=st.floats(-50, 50, width=32)),
    st.integers(2, 8),
)
def test_the_best_percentile_of_a_tensor(values: np.ndarray, bits: int) -> None:
    """Oracle: errors of grids on the values themselves; a histogram of 8,192 bins is off by a bin at each end."""
    wanted = Precision(bits)
    observed = Observed(counted=True)
    observed.see(torch.from_numpy(values))
    shares = (0.9, 0.98, 1.0)
    low, high = BestPercentile(shares).choose(observed, wanted)
    assert low <= high
    width = (values.max() - values.min()) / 8192
    tails = [end for share in shares for end in (1 - share, share)]
    ends = np.stack([np.quantile(values, tails, method=way) for way in ("lower", "higher")]).reshape(-1, 2)
    assert np.abs(ends[:, 0] - low).min() <= 2.1 * width + 1e-6
    assert np.abs(ends[:, 1] - high).min() <= 2.1 * width + 1e-6

    def error(first: float, last: float) -> float:
        given = torch.from_numpy(values)
        return float((fake(given, grid_for(first, last, wanted)) - given).square().mean())

    least = min(error(*BestPercentile((share,)).choose(observed, wanted)) for share in shares)
    step = float(grid_for(low, high, wanted).scale)
    assert error(low, high) <= least + 2 * width * (step + width) + 1e-6


def test_bad_inputs_are_refused() -> None:
    graph = captured("vit")
    with pytest.raises(BadInput, match="no calibration data"):
        RepQViT().plan(graph, [], asked(graph), rng=generator(0))
    nothing = torch.full((2, 3, 32, 32), torch.nan)
    part = {site: one for site, one in asked(graph).items() if "norm1" in str(site)}
    with pytest.raises(BadInput, match=r"not finite at blocks.0.attn.qkv/linear#0:input0"):
        RepQViT().plan(graph, [nothing], part, rng=generator(0))
    part = {site: one for site, one in asked(graph).items() if "softmax" in str(site)}
    with pytest.raises(BadInput, match=r"not finite at blocks.0.attn/softmax#0:output"):
        RepQViT().plan(graph, [nothing], part, rng=generator(0))
    for shares in ((), (0.4,), (1.1,)):
        with pytest.raises(BadInput, match="at most 1"):
            RepQViT(shares=shares)
        with pytest.raises(BadInput, match="at most 1"):
            BestPercentile(shares)
