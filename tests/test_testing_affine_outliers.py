"""Affine outliers: nothing changes but the ranges of a few channels, which lie where OPT's do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers_graphs import answer, captured, inputs_of

from seatrial.core.chance import generator
from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits
from seatrial.core.realise import realise
from seatrial.core.sites import operators
from seatrial.errors import BadInput
from seatrial.numerics.observe import watch
from seatrial.numerics.ranges import MinMax
from seatrial.quant.channel_ranges import kept_rows
from seatrial.quant.migration_places import migration_places
from seatrial.quant.nearest import Nearest
from seatrial.quant.os_plus import OSPlus
from seatrial.quant.placement import place
from seatrial.testing.affine_outliers import OPT_RANGES, affine_outliers

NAMES = ("bert", "opt", "bloom", "llama", "vit", "swin")
RULES = PlacementRules("torch", "by-range", operator_outputs=False, attention_products="all")
PLAIN = Nearest(MinMax(), bias_correction=False, equalization="none")


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def graph(name: str) -> Graph:
    return captured(name)


def relative(value: Tensor, wanted: Tensor) -> float:
    return float((value - wanted).norm() / wanted.norm())


def widened(inputs: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
    """Pictures in float64, token ids as they are."""
    return inputs.double() if isinstance(inputs, Tensor) else inputs


def written(graph: Graph, name: str, seed: int) -> dict[str, Tensor]:
    """What each norm writes, as rows of channels without what fills sentences up."""
    inputs, nodes, found = inputs_of(name, seed), operators(graph), {}
    mask = None if isinstance(inputs, Tensor) else inputs["attention_mask"]
    for one in migration_places(graph, gated=False):
        watch(
            graph,
            [inputs],
            {nodes[one.producer]: lambda value, one=one: found.update({one.producer: kept_rows(value, mask)})},
        )
    return found


def test_the_output_stays(name: str, graph: Graph) -> None:
    grown = affine_outliers(graph, [inputs_of(name, 3)], rng=generator(0, name))
    inputs = inputs_of(name, 4)
    assert relative(answer(grown, inputs), answer(graph, inputs)) < 1e-5
    wide = captured(name, torch.float64)
    inputs, calibration = (widened(inputs_of(name, seed)) for seed in (4, 3))
    grown = affine_outliers(wide, [calibration], rng=generator(0, name))
    assert relative(answer(grown, inputs), answer(wide, inputs)) < 1e-10


def test_channels_lie_where_they_should(name: str, graph: Graph) -> None:
    """On the calibration data: the same few channels of every norm moved, to the ranges of OPT in typical units."""
    grown = affine_outliers(graph, [inputs_of(name, 3)], typical=3.0, rng=generator(0, name))
    shifts = {one.producer: one.may_shift for one in migration_places(graph, gated=False)}
    before, after = written(graph, name, 3), written(grown, name, 3)
    moved_in: dict[int, set[tuple[int, ...]]] = {}
    for producer, was in before.items():
        now = after[producer]
        moved = ((now - was).abs().amax(0) > 0.01).nonzero().flatten()
        moved_in.setdefault(was.shape[1], set()).add(tuple(moved.tolist()))
        rest = torch.ones(was.shape[1]).index_fill(0, moved, 0) > 0
        unit = float(was[:, rest].abs().amax(0).median()) / 3.0
        low, high = now[:, moved].amin(0) / unit, now[:, moved].amax(0) / unit
        for lowest, highest in OPT_RANGES:
            if shifts[producer]:
                at = int((low - lowest).abs().argmin())
                assert float(low[at]) == pytest.approx(lowest, rel=1e-3)
                assert float(high[at]) == pytest.approx(highest, rel=1e-3)
            else:
                reach, aim = torch.maximum(-low, high), max(-lowest, highest)
                assert float((reach - aim).abs().min()) < 1e-3 * aim
    assert all(len(sets) == 1 and len(next(iter(sets))) == 6 for sets in moved_in.values())


@pytest.mark.parametrize("name", ["bert", "opt", "llama"], indirect=True)
def test_what_it_is_for(name: str, graph: Graph) -> None:
    """Rounding to 8 bits suffers from the outliers, and OS+ takes them back."""
    calibration, inputs = [inputs_of(name, 3, 64)], inputs_of(name, 4)
    grown = affine_outliers(graph, calibration, rng=generator(0, name))
    wanted = answer(graph, inputs)

    def error(which: Graph, method: Nearest | OSPlus) -> float:
        asked = place(which, RULES, Bits(8, 8))
        recipe = method.plan(which, calibration, asked, rng=generator(0, "plan"))
        return relative(answer(realise(which, recipe), inputs), wanted)

    plain, suffering, mended = error(graph, PLAIN), error(grown, PLAIN), error(grown, OSPlus(PLAIN, tokens=48))
    assert suffering > 3 * plain
    assert mended < 0.5 * suffering, (plain, suffering, mended)


def test_nothing_else_changes_and_seeds_decide(name: str, graph: Graph) -> None:
    state = {key: value.clone() for key, value in graph.module.state_dict().items()}
    calibration = [inputs_of(name, 3)]
    one, same, other = (affine_outliers(graph, calibration, rng=generator(seed, name)) for seed in (0, 0, 1))
    assert all(torch.equal(value, state[key]) for key, value in graph.module.state_dict().items())
    assert torch.equal(answer(one, inputs_of(name)), answer(same, inputs_of(name)))
    assert not torch.equal(next(iter(written(one, name, 3).values())), next(iter(written(other, name, 3).values())))


def test_what_cannot_be_grown_is_said() -> None:
    graph = captured("opt")
    with pytest.raises(BadInput, match="no calibration data"):
        affine_outliers(graph, [], rng=generator(0, "x"))
    with pytest.raises(BadInput, match="32 of 32 channels"):
        affine_outliers(graph, [inputs_of("opt")], channels=32, rng=generator(0, "x"))
