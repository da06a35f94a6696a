"""Token-wise clipping: NumPy's order statistics, and the whole network as the judge of how much is clipped."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers_graphs import captured, inputs_of

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits, Precision
from seatrial.core.realise import realise, source
from seatrial.core.recipe import Affine, Migrate, Recipe, Round
from seatrial.core.sites import Site, operators, signature
from seatrial.errors import BadInput
from seatrial.jobs.quantized import quantizer_of
from seatrial.jobs.settings import Settings
from seatrial.numerics.observe import watch
from seatrial.numerics.ranges import MinMax, Observed, grid_for
from seatrial.numerics.token_wise import TokenWise
from seatrial.quant.nearest import Nearest
from seatrial.quant.nearest_answers import nearest_answers
from seatrial.quant.placement import place

RULES = PlacementRules("torch", "by-range", operator_outputs=False, attention_products="all")
PLAIN = {"bias_correction": False, "equalization": "none"}
WORDS, RARE, WIDTH = 40, 38, 8
U6 = Precision(6, signed=False)
S6 = Precision(6, signed=True, symmetric=True)


class Words(nn.Module):
    """Answers for each token; two rare tokens have large values in a channel that hardly counts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.first = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(2 * WIDTH, 5)
        with torch.no_grad():
            self.table.weight[RARE:, 0] = torch.tensor([30.0, -20.0])
            self.first.weight[:, 0] *= 0.01
            self.last.weight[:, 0] *= 0.01

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        words = self.table(input_ids) * attention_mask[..., None]
        return self.last(torch.cat([words, self.first(words).tanh()], -1))


def sentences(seed: int, count: int = 40, filling: int = 0) -> dict[str, Tensor]:
    """Every hundredth token is one of the rare ones; the first sentences end early, with `filling` behind."""
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, RARE, (count, 10), generator=made)
    ids.view(-1)[::100] = RARE + torch.arange(len(ids.view(-1)[::100])) % 2
    mask = torch.ones_like(ids)
    mask[:5, 6:] = 0
    return {"input_ids": ids.where(mask > 0, torch.tensor(filling)), "attention_mask": mask}


@pytest.fixture(scope="module")
def graph() -> Graph:
    return capture(Words(), sentences(0))


def clipped(tokens: np.ndarray, ratio: float) -> tuple[float, float]:
    """The oracle: order statistics of the tokens' largest and smallest values."""
    highs, lows = np.sort(tokens.max(1)), np.sort(tokens.min(1))
    return (
        float(np.quantile(lows, ratio, method="higher")),
        float(np.quantile(highs, 1 - ratio, method="lower")),
    )


def seen_of(batches: list[np.ndarray], window: tuple[float, float] = (-math.inf, math.inf)) -> Observed:
    seen = Observed(window, by_token=True)
    for batch in batches:
        seen.see(torch.from_numpy(batch))
    return seen


def grids(recipe: Recipe) -> dict[str, Affine]:
    return {str(edit.site): edit.grid for edit in recipe.rounds if isinstance(edit.grid, Affine)}


def planned(
    graph: Graph, wanted: Mapping[str, Precision], ranges: TokenWise | MinMax, *seeds: int
) -> dict[str, Affine]:
    batches = [sentences(seed) for seed in seeds or (1, 2)]
    sites = {Site.parse(text): asked for text, asked in wanted.items()}
    return grids(Nearest(ranges, **PLAIN).plan(graph, batches, sites, rng=generator(0)))  # pyright: ignore[reportArgumentType]


def assert_same(one: Affine, other: Affine) -> None:
    assert torch.equal(one.scale, other.scale)
    assert torch.equal(one.zero_point, other.zero_point)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 99),
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    percent=st.integers(0, 49),
    low=st.sampled_from([-math.inf, -1.0, 0.0]),
)
def test_the_range_is_that_of_numpy(seed: int, counts: list[int], percent: int, low: float) -> None:
    rng = np.random.default_rng(seed)
    batches = [rng.standard_normal((count, 2, 5)).astype(np.float32) for count in counts]
    found = TokenWise(percent / 100).choose(seen_of(batches, (low, 2.0)), Precision(8))
    tokens = np.concatenate([batch.reshape(-1, 5) for batch in batches]).clip(low, 2.0)
    assert found == clipped(tokens, percent / 100)
    # Each end leaves at most this share of the tokens out, and no end passes the other.
    assert found[0] <= found[1]
    for outside in ((tokens.max(1) > found[1]).sum(), (tokens.min(1) < found[0]).sum()):
        assert outside <= math.ceil(percent / 100 * (len(tokens) - 1))
    assert TokenWise(0.0).choose(seen_of(batches), Precision(8)) == MinMax().choose(seen_of(batches), Precision(8))


def test_ratios_are_those_of_the_code_of_os_plus() -> None:
    """Steps of 0.005 up to 0.05 at 8 bits and 0.1 at 6 (its token_wise_clipping.py), without the last."""
    for bits, count in ((8, 10), (16, 10), (6, 20), (4, 20)):
        np.testing.assert_allclose([one.ratio for one in TokenWise().tried(bits)], 0.005 * np.arange(count))  # pyright: ignore[reportAttributeAccessIssue]
    assert TokenWise(0.02).tried(6) == (TokenWise(0.02),)
    assert MinMax().tried(6) == (MinMax(),)


def test_of_very_many_tokens_some_are_kept() -> None:
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((100, 300, 4)).astype(np.float32)
    seen = seen_of([batch] * 3)
    assert sum(one.size for one in seen.tokens) <= 3 * 2 * 4096
    low, high = TokenWise(0.05).choose(seen, Precision(8))
    rows = batch.reshape(-1, 4)
    assert (rows.max(1) > high).mean() == pytest.approx(0.05, abs=0.01)
    assert (rows.min(1) < low).mean() == pytest.approx(0.05, abs=0.01)


def test_grids_are_of_the_tokens_that_the_mask_leaves(graph: Graph) -> None:
    found = planned(graph, {"first/linear#0:input0": U6}, TokenWise(0.03))["first/linear#0:input0"]
    table = Words().table.weight.detach().numpy()
    ids = [batch["input_ids"][batch["attention_mask"] > 0].numpy() for batch in (sentences(1), sentences(2))]
    assert_same(found, grid_for(*clipped(table[np.concatenate(ids)], 0.03), U6))
    other = Nearest(TokenWise(0.03), **PLAIN).plan(  # pyright: ignore[reportArgumentType]
        graph,
        [sentences(1, filling=RARE), sentences(2, filling=RARE)],
        {Site.parse("first/linear#0:input0"): U6},
        rng=generator(0),
    )
    assert_same(found, grids(other)["first/linear#0:input0"])


def test_tied_sites_share_the_union_of_their_tokens(graph: Graph) -> None:
    tied = Precision(6, signed=False, tie="cat")
    sites = ["first/linear#0:input0", "last/linear#0:input0"]
    one, other = planned(graph, dict.fromkeys(sites, tied), TokenWise(0.04)).values()
    assert_same(one, other)
    rows: list[np.ndarray] = []
    for seed in (1, 2):
        batch = sentences(seed)
        for site in sites:
            node = source(operators(graph)[site.split(":")[0]], "input0")
            watch(
                graph, [batch], {node: lambda value, mask=batch["attention_mask"]: rows.append(value[mask > 0].numpy())}
            )
    ends = [(row.min(1), row.max(1)) for row in rows]
    lows, highs = (np.concatenate([end[at] for end in ends]) for at in (0, 1))
    assert_same(one, grid_for(*clipped(np.stack([lows, highs], 1), 0.04), tied))
    # With a value that has no tokens, both keep their lowest and highest.
    sites = ["first/linear#0:input0", "/cat#0:output", "/tanh#0:output"]
    mixed = planned(graph, dict.fromkeys(sites, tied), TokenWise(0.04))
    for name, grid in planned(graph, dict.fromkeys(sites, tied), MinMax()).items():
        assert_same(mixed[name], grid)


def squared_error(graph: Graph, recipe: Recipe, batches: list[dict[str, Tensor]]) -> float:
    """The oracle: answers of the whole network with a recipe, token by token."""
    rounded, total = realise(graph, recipe), 0.0
    for batch in batches:
        given = [batch[spec.name] for spec in graph.inputs]
        with torch.no_grad():
            off = (rounded.module(*given) - graph.module(*given)).double().numpy()
        rows = off if off.ndim == 2 else off[batch["attention_mask"].numpy() > 0]
        total += float((rows**2).sum())
    return total


@pytest.mark.parametrize("kind", ["words", "bert", "opt"])
def test_the_ratio_has_the_least_error_of_the_whole_network(kind: str, graph: Graph) -> None:
    if kind == "words":
        batches, wanted = [sentences(1), sentences(2)], place(graph, RULES, Bits(6, 6))
    else:
        graph = captured(kind)
        batches, wanted = [inputs_of(kind, seed, 8) for seed in (5, 6)], place(graph, RULES, Bits(4, 4))
    recipes = {
        ratio: Nearest(TokenWise(ratio), **PLAIN).plan(graph, batches, wanted, rng=generator(0))  # pyright: ignore[reportArgumentType]
        for ratio in (0.005 * index for index in range(20))
    }
    errors = {ratio: squared_error(graph, recipe, batches) for ratio, recipe in recipes.items()}  # pyright: ignore[reportArgumentType]
    best = min(errors, key=lambda ratio: errors[ratio])
    found = Nearest(TokenWise(), **PLAIN).plan(graph, batches, wanted, rng=generator(0))  # pyright: ignore[reportArgumentType]
    for site, grid in grids(found).items():
        assert_same(grid, grids(recipes[best])[site])
    assert len(set(errors.values())) > 3
    if kind == "words":
        assert best > 0
        assert errors[best] < 0.2 * errors[0.0]


def test_values_without_tokens_keep_their_bounds() -> None:
    graph = captured("vit")
    batches = [inputs_of("vit", 5)]
    wanted = place(graph, RULES, Bits(6, 6))
    found, plain = (
        grids(Nearest(ranges, **PLAIN).plan(graph, batches, wanted, rng=generator(0)))  # pyright: ignore[reportArgumentType]
        for ranges in (TokenWise(0.1), MinMax())
    )
    same = {site for site in found if torch.equal(found[site].scale, plain[site].scale)}
    kinds = {site.split("/")[-1].split("#")[0]: site in same for site in found if site.endswith("output")}
    assert kinds == {
        "placeholder": True,
        "layer_norm": False,
        "mul": True,  # queries in heads
        "getitem": True,  # keys and values
        "softmax": True,
        "matmul": True,
        "gelu": False,
        "select": False,
    }


@pytest.mark.parametrize("method", ["nearest", "os-plus", "smooth-quant", "outlier-suppression"])
def test_every_quantizer_that_has_grids_clips(method: str) -> None:
    graph = captured("bert")
    quantizer = quantizer_of(Settings(method=method, ranges="token-wise", equalization="none"), pictures=False)
    batches = [inputs_of("bert", 5)]
    site = "bert.encoder.layer.0.intermediate.dense/linear#0:input0"
    wanted = {Site.parse(site): U6}
    recipe = quantizer.plan(graph, batches, wanted, rng=generator(0))
    moved = realise(graph, Recipe(tuple(e for e in recipe.edits if isinstance(e, Migrate)), signature(graph)))
    seen: list[Tensor] = []
    watch(moved, batches, {source(operators(moved)[site.split(":")[0]], "input0"): seen.append})
    tokens = seen[0][batches[0]["attention_mask"] > 0].numpy()  # pyright: ignore[reportCallIssue, reportArgumentType]
    scales = {float(grid_for(*clipped(tokens, 0.005 * index), U6).scale) for index in range(20)}
    assert len(scales) > 1
    assert float(grids(recipe)[site].scale) in scales
    assert float(grids(recipe)[site].scale) <= float(grid_for(float(tokens.min()), float(tokens.max()), U6).scale)


def test_the_first_of_equals_is_taken(graph: Graph) -> None:
    site = Site.parse("last/linear#0:input0")
    good, coarse = grid_for(-3.0, 3.0, S6), grid_for(-300.0, 300.0, S6)
    choices = [[Round(site, grid)] for grid in (coarse, good, good)]
    assert nearest_answers(graph, [sentences(1)], choices) == 1
    assert nearest_answers(graph, [sentences(1)], choices[:1]) == 0


@pytest.mark.parametrize(
    "options", [{"ratio": 0.5}, {"ratio": -0.1}, {"step": 0.0}, {"step": 0.5}, {"ratio": math.nan}]
)
def test_what_is_no_ratio_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=r"from 0 to 0\.5"):
        TokenWise(**options)  # pyright: ignore[reportArgumentType]


def test_no_data_and_values_that_are_not_finite_are_named(graph: Graph) -> None:
    with pytest.raises(BadInput, match="no calibration batch"):
        TokenWise(0.1).choose(Observed(by_token=True), Precision(8))
    with pytest.raises(BadInput, match="not finite at a tensor"):
        seen_of([np.full((2, 3), np.nan, np.float32)])
