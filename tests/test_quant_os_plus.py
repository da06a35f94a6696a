"""OS+ and its peers that migrate: the function stays, the loss is what it says, thresholds are found."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers_graphs import answer, captured, inputs_of

from seatrial.core.chance import generator
from seatrial.core.graph import Graph
from seatrial.core.insert_round import fake
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits, Precision
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise
from seatrial.core.recipe import Migrate, Recipe, Round
from seatrial.core.sites import Site, operators, signature
from seatrial.errors import BadInput
from seatrial.numerics.observe import tensors_of, watch
from seatrial.numerics.ranges import MinMax, grid_for, weight_grid
from seatrial.quant.channel_ranges import ChannelRanges, ranges_of
from seatrial.quant.migrated_consumer import MigratedConsumer
from seatrial.quant.migration_places import Place, migration_places
from seatrial.quant.nearest import Nearest, grid_of_weight
from seatrial.quant.os_plus import OSPlus
from seatrial.quant.outlier_suppression import OutlierSuppression
from seatrial.quant.place_loss import PlaceLoss
from seatrial.quant.placement import place
from seatrial.quant.rounded_walk import RoundedWalk
from seatrial.quant.smooth_quant import SmoothQuant
from seatrial.quant.threshold_search import best_scale, scales_of

NAMES = ("bert", "opt", "bloom", "llama", "vit", "swin")
RULES = PlacementRules("torch", "by-range", operator_outputs=False, attention_products="all")
PLAIN = Nearest(MinMax(), bias_correction=False, equalization="none")
METHODS: dict[str, Quantizer] = {
    "os-plus": OSPlus(PLAIN, tokens=24),
    "os-plus without shift": OSPlus(PLAIN, shift=False, tokens=24),
    "os-plus of layers": OSPlus(PLAIN, objective="layers", tokens=24),
    "smooth-quant": SmoothQuant(PLAIN, gated=True),
    "smooth-quant of values": SmoothQuant(PLAIN, values=True),
    "outlier-suppression": OutlierSuppression(PLAIN),
}


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def graph(name: str) -> Graph:
    return captured(name)


@pytest.fixture(scope="module")
def recipe(graph: Graph, name: str) -> Recipe:
    """What OS+ plans for each network."""
    return planned(graph, name, METHODS["os-plus"])


def planned(graph: Graph, name: str, method: Quantizer, count: int = 4) -> Recipe:
    wanted = place(graph, RULES, Bits(6, 6))
    return method.plan(graph, [inputs_of(name, seed, count) for seed in (5, 6)], wanted, rng=generator(0, "plan"))


def migrations(recipe: Recipe) -> tuple[Migrate, ...]:
    return tuple(edit for edit in recipe.edits if isinstance(edit, Migrate))


def relative(value: Tensor, wanted: Tensor) -> float:
    return float((value - wanted).norm() / wanted.norm())


def places_of(graph: Graph) -> list[Place]:
    """The places of norms and gated projections, then those of values."""
    return sorted(migration_places(graph, values=True), key=lambda one: one.kind == "values")


PLACES: Mapping[str, list[tuple[str, tuple[str, ...], bool, str]]] = {
    "bert": [
        ("embeddings.LayerNorm", ("query", "key", "value"), True, "norm"),
        ("layer.0.attention.output.LayerNorm", ("dense",), True, "norm"),
        ("layer.0.output.LayerNorm", ("query", "key", "value"), True, "norm"),
        ("layer.1.attention.output.LayerNorm", ("dense",), True, "norm"),
        ("layer.1.output.LayerNorm", ("dense",), True, "norm"),
    ],
    "llama": [
        ("layers.0.input_layernorm", ("q_proj", "k_proj", "v_proj"), False, "norm"),
        ("layers.0.post_attention_layernorm", ("gate_proj", "up_proj"), False, "norm"),
        ("layers.0.mlp.up_proj", ("down_proj",), False, "gated"),
        ("layers.1.input_layernorm", ("q_proj", "k_proj", "v_proj"), False, "norm"),
        ("layers.1.post_attention_layernorm", ("gate_proj", "up_proj"), False, "norm"),
        ("layers.1.mlp.up_proj", ("down_proj",), False, "gated"),
        ("model.norm", ("lm_head",), False, "norm"),
    ],
    "vit": [
        ("blocks.0.norm1", ("qkv",), True, "norm"),
        ("blocks.0.norm2", ("fc1",), True, "norm"),
        ("blocks.1.norm1", ("qkv",), True, "norm"),
        ("blocks.1.norm2", ("fc1",), True, "norm"),
        ("norm", ("head",), True, "norm"),
    ],
}


@pytest.mark.parametrize("kind", PLACES)
def test_places_are_found_in_the_graph(kind: str) -> None:
    found = migration_places(captured(kind))
    for one, (producer, consumers, may_shift, sort) in zip(found, PLACES[kind], strict=True):
        assert one.producer.split("/")[0].endswith(producer)
        assert tuple(name.split("/")[0].rsplit(".", 1)[-1] for name in one.consumers) == consumers
        assert (one.may_shift, one.kind) == (may_shift, sort)


def test_migrations_leave_the_function(graph: Graph, name: str, recipe: Recipe) -> None:
    assert_function_stays(graph, name, recipe)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "os-plus"])
def test_migrations_of_every_method_leave_the_function(kind: str, method: str) -> None:
    """Behind a norm with a shift and a residual branch, and behind one without."""
    assert_function_stays(captured(kind), kind, planned(captured(kind), kind, METHODS[method]))


def test_migrations_of_values_leave_the_function(graph: Graph, name: str) -> None:
    recipe = planned(graph, name, OSPlus(PLAIN, tokens=24, values=True))
    assert_function_stays(graph, name, recipe)
    places = {one.producer: one for one in places_of(graph) if one.kind == "values"}
    found = [edit for edit in migrations(recipe) if edit.producer.operator in places]
    assert len(found) == len(places) == (4 if name == "swin" else 2)
    for edit in found:
        one = places[edit.producer.operator]
        assert tuple(site.operator for site in edit.consumers) == one.consumers
        # Queries and keys of fused projections stay.
        others = torch.ones(len(edit.scale)).index_fill(0, torch.tensor(one.channels), 0) > 0
        assert bool((edit.scale[others] == 1).all() & (edit.shift[others] == 0).all())
        assert bool(edit.shift.any())
    assert {edit.site for edit in recipe.rounds} == set(place(graph, RULES, Bits(6, 6)))


def assert_function_stays(graph: Graph, name: str, recipe: Recipe) -> None:
    found = migrations(recipe)
    assert found
    moved = realise(graph, Recipe(found, signature(graph)))
    assert relative(answer(moved, inputs_of(name, 9)), answer(graph, inputs_of(name, 9))) < 1e-5


def test_in_double_precision_to_ten_digits(name: str) -> None:
    graph = captured(name, torch.float64)
    inputs = inputs_of(name, 9)
    inputs = inputs.double() if isinstance(inputs, Tensor) else inputs
    rng = np.random.default_rng(0)
    edits = []
    for one in places_of(graph):
        (count,) = {operators(graph)[name].args[1].meta["val"].shape[1] for name in one.consumers}  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        shift = one.highest(torch.from_numpy(rng.normal(0, 3, count) * one.may_shift))
        scale = one.highest(torch.from_numpy(rng.uniform(0.1, 9, count)))
        edits.append(one.migration(shift, scale))
    moved = realise(graph, Recipe(tuple(edits), signature(graph)))
    assert len(edits) >= 7
    assert relative(answer(moved, inputs), answer(graph, inputs)) < 1e-10


def test_every_site_asked_for_is_rounded(graph: Graph, recipe: Recipe) -> None:
    assert {edit.site for edit in recipe.rounds} == set(place(graph, RULES, Bits(6, 6)))


def with_outliers(graph: Graph) -> Graph:
    """The same function with channels as real language models have them: two far off, each narrow."""
    edits = []
    for one in migration_places(graph, gated=False):
        count = operators(graph)[one.consumers[0]].args[1].meta["val"].shape[1]  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        scale, shift = torch.ones(count), torch.zeros(count)
        scale[[3, 7]] = 1 / 15
        if one.may_shift:
            shift[3], shift[7] = 5.0, -2.0
        sites = tuple(Site.parse(f"{consumer}:output") for consumer in one.consumers)
        edits.append(Migrate(Site.parse(f"{one.producer}:output"), sites, shift, scale))
    return realise(graph, Recipe(tuple(edits), signature(graph)))


def test_outliers_that_are_affine_are_undone(graph: Graph, name: str) -> None:
    outlying = with_outliers(graph)
    inputs = inputs_of(name, 9)
    wanted = answer(graph, inputs)

    def error(which: Graph, method: Quantizer) -> float:
        # Aligned channels all end at the ends of the grid: ranges of a few sentences would clip the next ones.
        return relative(answer(realise(which, planned(which, name, method, count=32)), inputs), wanted)

    plain, found, untouched = error(outlying, PLAIN), error(outlying, METHODS["os-plus"]), error(graph, PLAIN)
    assert plain > 2 * untouched
    assert found < 1.5 * untouched


def place_loss(graph: Graph, name: str, number: int, count: int = 4) -> tuple[PlaceLoss, Tensor, Tensor]:
    """The loss of one place by itself at 6 bits, the reach of its channels, and their shift."""
    one, named = places_of(graph)[number], operators(graph)
    batch = tensors_of(graph, inputs_of(name, 5, count))
    walk = RoundedWalk(graph, [batch, batch], {})
    nodes = [named[consumer] for consumer in one.consumers]
    read = {node: walk.values(node.args[0])[0] for node in nodes}  # pyright: ignore[reportArgumentType]
    first = read[nodes[0]]
    ranges = ranges_of(first.reshape(-1, first.shape[-1]), one.producer)
    ranges = ChannelRanges(-one.highest(-ranges.low), one.highest(ranges.high))
    shift = ranges.middle if one.may_shift else torch.zeros_like(ranges.low)
    taking = {node: MigratedConsumer(graph, node, INPUT, WEIGHT, ranges, shift) for node in nodes}
    return PlaceLoss(taking, read, walk, None, "output"), torch.maximum(ranges.high - shift, shift - ranges.low), shift


INPUT, WEIGHT = Precision(6), Precision(6, signed=True, symmetric=True, axis=0, narrow=True)
JUDGED = {
    ("bert", 0): "bert.encoder.layer.0.attention.output.dense/linear#0:input0",
    ("bert", 1): "bert.encoder.layer.0.intermediate.dense/linear#0:output",
    ("llama", 0): "model.layers.0.self_attn.o_proj/linear#0:input0",
    ("llama", 1): "model.layers.0.mlp.down_proj/linear#0:input0",
    ("llama", 2): "model.layers.0.mlp.down_proj/linear#0:output",
    ("llama", -1): "model.layers.1.self_attn.o_proj/linear#0:output",
    ("bloom", 0): "transformer.h.0.self_attention.dense/linear#0:input0",
    ("swin", 0): "layers.0.blocks.0.attn.proj/linear#0:input0",
    ("swin", -1): "layers.1.blocks.1.attn.proj/linear#0:output",
}


@pytest.mark.parametrize(("kind", "number"), JUDGED)
def test_the_loss_is_that_of_the_network_itself(kind: str, number: int) -> None:
    """Oracle: carry the migration and the rounds out in the whole graph, and look at what is judged."""
    graph = captured(kind)
    one = places_of(graph)[number]
    loss, reach, shift = place_loss(graph, kind, number)
    scales = scales_of(reach, (100, 40, 10), 100)
    for scale, told in zip(scales, loss.of(scales), strict=True):
        moved = realise(graph, Recipe((one.migration(shift, scale),), signature(graph)))
        rounds = []
        for name in one.consumers:
            node = operators(moved)[name]
            seen: list[Tensor] = []
            watch(moved, [inputs_of(kind, 5)], {node.args[0]: seen.append})  # pyright: ignore[reportArgumentType]
            grid = grid_for(float(seen[0].min()), float(seen[0].max()), INPUT)
            weight = moved.module.get_buffer(str(node.args[1].target))  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
            rows = weight_grid(weight, WEIGHT)
            rounds += [Round(Site.parse(f"{name}:input0"), grid), Round(Site.parse(f"{name}:weight"), rows)]
        rounded = realise(moved, Recipe(tuple(rounds), signature(moved)))
        judged = Site.parse(JUDGED[kind, number])
        values = []
        for version in (graph, rounded):
            node = operators(version)[judged.operator]
            value = node if judged.port == "output" else node.args[0]
            seen = []
            watch(version, [inputs_of(kind, 5)], {value: seen.append})  # pyright: ignore[reportArgumentType]
            values.append(seen[0])
        error = float((values[0] - values[1]).square().sum() / values[0][..., 0].numel())
        assert told == pytest.approx(error, rel=2e-3)


@pytest.mark.parametrize(("kind", "number"), JUDGED)
def test_coarse_to_fine_is_within_two_percent_of_the_full_search(kind: str, number: int) -> None:
    count = 8 if kind == "swin" else 64  # pictures have 196 tokens each
    loss, reach, _ = place_loss(with_outliers(captured(kind)), kind, number, count)
    _, full = best_scale(loss.of, reach, 100, full=True)
    _, found = best_scale(loss.of, reach, 100)
    assert found <= 1.02 * full


@given(st.integers(1, 100), st.integers(1, 120))
def test_a_valley_is_always_found(bottom: int, thresholds: int) -> None:
    reach = torch.tensor([1.0, 4.0])

    def loss(scales: Tensor) -> list[float]:
        return [abs(4.0 / float(scale[1]) - 4.0 * min(bottom, thresholds) / thresholds) for scale in scales]

    scale, least = best_scale(loss, reach, thresholds)
    assert least < 1e-5
    assert float(scale[1]) == pytest.approx(thresholds / min(bottom, thresholds), rel=1e-5)


def test_the_widest_of_equal_thresholds_wins() -> None:
    scale, _ = best_scale(lambda scales: [0.0] * len(scales), torch.tensor([1.0, 4.0]), 100)
    assert torch.equal(scale, torch.ones(2))


def test_shifts_align_the_channels_of_opt_66b() -> None:
    """Wei et al. 2023, figure 1: channel 8725 lies in (-97, -58), another in (5.7, 43): 140 wide, aligned 40."""
    rows = torch.tensor([[-97.0, 5.7], [-58.0, 43.0]])
    ranges = ranges_of(rows, "x")
    moved = rows - ranges.middle
    assert float(rows.max() - rows.min()) == pytest.approx(140)
    assert float(moved.max() - moved.min()) == pytest.approx(39)


def test_scales_shrink_only_channels_beyond_the_threshold() -> None:
    assert torch.allclose(scales_of(torch.tensor([1.0, 2.0, 8.0]), [25], 100)[0], torch.tensor([1.0, 1.0, 4.0]))


def test_what_fills_sentences_up_does_not_count() -> None:
    graph = captured("opt")
    wanted = {site: asked for site, asked in place(graph, RULES, Bits(6, 6)).items() if site.port == "weight"}
    found = []
    for filling in (0, 59):
        inputs = inputs_of("opt", 5)
        assert isinstance(inputs, dict)
        inputs["input_ids"] = torch.where(inputs["attention_mask"] > 0, inputs["input_ids"], filling)
        found.append(migrations(OSPlus(PLAIN, tokens=10**6).plan(graph, [inputs], wanted, rng=generator(0))))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one.shift, other.shift, atol=1e-5)
        assert torch.allclose(one.scale, other.scale, atol=1e-5)


@pytest.mark.parametrize("group", [8, 24])
def test_weights_in_groups_are_judged_as_they_are_rounded(group: int) -> None:
    """Oracle: the grid that the plan gives the weight; the last group of a row may be shorter."""
    graph = captured("vit")
    node = operators(graph)["blocks.0.mlp.fc1/linear#0"]
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    wanted = Precision(4, signed=False, group=group)
    consumer = MigratedConsumer(graph, node, None, wanted, ranges_of(x, "x"), torch.zeros(32), torch.ones(32))
    weight, bias = (graph.module.get_parameter(str(read.target)) for read in node.args[1:3])  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    rounded = fake(weight.detach(), grid_of_weight(weight, wanted))
    assert not torch.equal(rounded, weight)
    assert torch.allclose(consumer(x), x @ rounded.T + bias, atol=1e-5)


def test_smooth_quant_is_its_formula() -> None:
    graph = captured("vit")
    recipe = planned(graph, "vit", SmoothQuant(PLAIN, alpha=0.7))
    one, named = migration_places(graph)[0], operators(graph)
    seen: list[Tensor] = []
    for seed in (5, 6):
        watch(graph, [inputs_of("vit", seed)], {named[one.producer]: seen.append})
    largest = np.abs(np.concatenate([value.numpy().reshape(-1, 32) for value in seen])).max(0)
    weight = graph.module.get_parameter(str(named[one.consumers[0]].args[1].target)).detach().numpy()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    wanted = largest**0.7 / np.abs(weight).max(0) ** 0.3
    np.testing.assert_allclose(migrations(recipe)[0].scale.numpy(), wanted, rtol=1e-5)


def test_heads_that_share_values_share_what_is_migrated() -> None:
    """LLaMA has two heads of queries for each one of values: channels of 2 x 8 become 4 x 8."""
    graph = captured("llama")
    one, named = places_of(graph)[-2], operators(graph)
    node = named[one.consumers[0]]
    seen: list[Tensor] = []
    for seed in (5, 6):
        inputs = inputs_of("llama", seed)
        assert isinstance(inputs, dict)
        shown = inputs["attention_mask"] > 0
        watch(graph, [inputs], {node.args[0]: lambda value, shown=shown: seen.append(value[shown])})  # pyright: ignore[reportArgumentType]
    rows = torch.cat(seen).numpy().reshape(-1, 2, 2, 8)
    largest = np.abs(rows).max((0, 2)).reshape(16)
    weight = graph.module.get_parameter(str(node.args[1].target)).detach().numpy()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    heavy = np.abs(weight.reshape(32, 2, 2, 8)).max((0, 2)).reshape(16)
    smooth = migrations(planned(graph, "llama", METHODS["smooth-quant of values"]))
    (found,) = [edit for edit in smooth if edit.producer.operator == one.producer]
    np.testing.assert_allclose(found.scale.numpy(), np.sqrt(largest / heavy), rtol=1e-5)
    plain = {site: asked for site, asked in place(graph, RULES, Bits(6, 6)).items() if site.operator in one.consumers}
    batches = [inputs_of("llama", seed) for seed in (5, 6)]
    recipe = OSPlus(PLAIN, values=True, scale=False).plan(graph, batches, plain, rng=generator(0))
    (found,) = migrations(recipe)
    middle = (rows.max((0, 2)) + rows.min((0, 2))).reshape(16) / 2
    np.testing.assert_allclose(found.shift.numpy(), middle, rtol=1e-4, atol=1e-6)


def test_gamma_migration_leaves_norms_with_gains_of_one() -> None:
    graph = captured("bert")
    moved = realise(graph, Recipe(migrations(planned(graph, "bert", OutlierSuppression(PLAIN))), signature(graph)))
    for one in migration_places(graph):
        gain = moved.module.get_buffer(str(operators(moved)[one.producer].args[2].target))  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        assert torch.allclose(gain.abs(), torch.ones(32), atol=1e-6)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "outlier-suppression"])
def test_numbers_that_are_not_finite_are_named(method: str) -> None:
    graph = captured("vit")
    wanted = {site: asked for site, asked in place(graph, RULES, Bits(6, 6)).items() if "qkv" in str(site)}
    with pytest.raises(BadInput, match=r"not finite at blocks.0.attn.qkv/linear#0:input0; [^\n]*check the data$"):
        METHODS[method].plan(graph, [torch.full((2, 3, 32, 32), float("nan"))], wanted, rng=generator(0))


def test_a_network_without_a_place_is_said_to_have_none() -> None:
    graph = captured("vit")
    named = [site for site in place(graph, RULES, Bits(6, 6)) if "fc2" in str(site)]
    wanted = {site: place(graph, RULES, Bits(6, 6))[site] for site in named}
    for method in METHODS.values():
        recipe = method.plan(graph, [inputs_of("vit")], wanted, rng=generator(0))
        assert "nothing was migrated" in recipe.notes[0]
        assert migrations(recipe) == ()
        assert len(recipe.rounds) == len(wanted)


def test_no_calibration_data_is_refused() -> None:
    with pytest.raises(BadInput, match="no calibration data"):
        OSPlus().plan(captured("vit"), [], {}, rng=generator(0))
    with pytest.raises(BadInput, match="at least one of each"):
        OSPlus(tokens=0)
    with pytest.raises(BadInput, match="alpha 2"):
        SmoothQuant(alpha=2)


def test_tokens_and_weights_in_groups_are_searched_as_they_will_run() -> None:
    """Dynamic tokens: what a consumer makes of a batch is what the realised graph makes of it."""
    graph = captured("vit")
    one, named = migration_places(graph)[0], operators(graph)
    node = named[one.consumers[0]]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    weight = graph.module.get_parameter(str(node.args[1].target)).detach()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    asked = Precision(4, dynamic=True), Precision(4, signed=True, symmetric=True, axis=None)
    consumer = MigratedConsumer(graph, node, *asked, ranges_of(x.reshape(-1, 32), "x"), torch.zeros(32))
    scale = torch.linspace(1, 3, 32)
    low, high = (x / scale).amin(-1, keepdim=True).clamp(max=0), (x / scale).amax(-1, keepdim=True).clamp(min=0)
    step = (high - low) / 15
    zero = (-low / step).round()
    rows = (((x / scale / step).round() + zero).clamp(0, 15) - zero) * step
    wanted = rows @ fake(weight * scale, weight_grid(weight * scale, asked[1])).T
    bias = graph.module.get_parameter(str(node.args[2].target)).detach()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    torch.testing.assert_close(consumer.with_scale(scale)(x), wanted + bias, rtol=1e-4, atol=1e-4)
