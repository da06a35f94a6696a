"""Noises of the graph, the arithmetic and the boxes: one choice each, opposites, chains."""

from __future__ import annotations

from dataclasses import replace

import pytest

from seatrial.catalogue import entries
from seatrial.core.alter_graph import GRAPH_EDITS
from seatrial.core.noise import System, SystemNoise
from seatrial.core.pipeline import Pipeline, Resize
from seatrial.errors import BadInput, NoNoise
from seatrial.jobs.noises import parse_noise, profile_texts
from seatrial.noise.align_corners_noise import ALIGN_CORNERS_OPTIONS, AlignCornersNoise
from seatrial.noise.box_offset_noise import BOX_OFFSET_OPTIONS, BoxOffsetNoise
from seatrial.noise.ceil_mode_noise import CEIL_MODE_OPTIONS, CeilModeNoise
from seatrial.noise.chain import Chain
from seatrial.noise.precision_noise import PrecisionNoise
from seatrial.noise.upsample_noise import UPSAMPLE_OPTIONS, UpsampleNoise

SYSTEM = System(Pipeline((32, 32), Resize(short_side_px=40)))
OF_THE_GRAPH: list[SystemNoise] = [
    *(CeilModeNoise(option=option) for option in CEIL_MODE_OPTIONS),
    *(UpsampleNoise(option=option) for option in UPSAMPLE_OPTIONS),
    *(AlignCornersNoise(option=option) for option in ALIGN_CORNERS_OPTIONS),
]


def test_every_edit_of_the_graph_has_a_noise() -> None:
    edits = [edit for noise in OF_THE_GRAPH for edit in noise.alter(SYSTEM).graph]
    assert sorted(edits) == sorted(GRAPH_EDITS)


@pytest.mark.parametrize("noise", OF_THE_GRAPH, ids=str)
def test_edits_of_other_operators_stay(noise: SystemNoise) -> None:
    before = replace(SYSTEM, arithmetic="bf16", graph=("something",))
    altered = noise.alter(before)
    assert altered == replace(before, graph=("something", *noise.alter(SYSTEM).graph))
    with pytest.raises(NoNoise, match="already"):
        noise.alter(altered)


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        (CeilModeNoise(option="ceil"), CeilModeNoise(option="floor"), "floor_mode"),
        (UpsampleNoise(option="nearest"), UpsampleNoise(option="bilinear"), "upsample:bilinear"),
    ],
)
def test_the_last_of_two_opposites_holds(first: SystemNoise, second: SystemNoise, left: str) -> None:
    assert Chain(parts=(first, second)).alter(SYSTEM).graph == (left,)


def test_a_chain_holds_all_choices() -> None:
    parts = (CeilModeNoise(option="ceil"), PrecisionNoise(option="int8"), BoxOffsetNoise(option="decode"))
    altered = Chain(parts=(*parts, UpsampleNoise(option="bilinear"))).alter(SYSTEM)
    graph = ("ceil_mode", "upsample:bilinear")
    assert altered == replace(SYSTEM, graph=graph, arithmetic="int8", boxes="decode")


@pytest.mark.parametrize("option", BOX_OFFSET_OPTIONS)
def test_a_box_offset_says_where(option: str) -> None:
    altered = BoxOffsetNoise(option=option).alter(SYSTEM)  # type: ignore[arg-type]
    assert altered == replace(SYSTEM, boxes=option)
    with pytest.raises(NoNoise, match="already"):
        BoxOffsetNoise(option=option).alter(altered)  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [CeilModeNoise, UpsampleNoise, AlignCornersNoise, BoxOffsetNoise, PrecisionNoise])
def test_unknown_options_are_refused(noise: type[SystemNoise]) -> None:
    with pytest.raises(BadInput, match="'directx'; wanted one of"):
        noise(option="directx")  # type: ignore[call-arg]


def test_the_command_line_asks_for_them_by_the_names_of_the_catalogue() -> None:
    names = ("ceil_mode", "upsample", "align_corners", "precision", "box_offset")
    for name in names:
        for choice in entries("system")[name].choices:
            spec, maker = parse_noise(f"{name}:{choice}")
            assert (spec.name, spec.option) == (name, choice)
            assert maker().option == choice
    # Table 1 of SysNoise has all of them but the corners.
    asked = {text.partition(":")[0] for text in profile_texts("sysnoise", "system", gradients=True)}
    assert set(names) - asked == {"align_corners"}
