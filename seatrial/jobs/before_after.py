"""What a method gained over plain rounding: errors of sites and ranges of channels, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from seatrial.core.chance import generator
from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.predictor import Inputs
from seatrial.core.recipe import Recipe
from seatrial.jobs.quantized import Quantized, quantizer_of, sites_asked
from seatrial.jobs.settings import Settings
from seatrial.quant.channel_ranges import ChannelRanges
from seatrial.quant.migrated_ranges import MigratedRanges, migrated_ranges
from seatrial.quant.reader_error import reader_errors
from seatrial.quant.site_error import site_errors
from seatrial.report.quantize_page import PLAIN

MOST_ENTRIES = 1024


def before_and_after(
    graph: Graph, batches: Sequence[Inputs], rules: PlacementRules, settings: Settings, quantized: Quantized
) -> dict[str, Any]:
    """Return `sites` and `channel_ranges` of the JSON of `seatrial quantize` (docs/json.md).

    Before is what `--method nearest` gives with the same options, after is `quantized`. For that method itself nothing
    is planned again, and there is no before.
    """
    after = reader_errors(graph, quantized.recipe, batches[:1])
    if settings.method == PLAIN:
        return {"sites": _site_data(quantized, after, {}, {}), "channel_ranges": []}
    pictures = graph.inputs[0].dtype.startswith("float")
    plain = quantizer_of(replace(settings, method=PLAIN), pictures=pictures)
    sites = sites_asked(graph, rules, settings)
    recipe = plain.plan(graph, batches, sites, rng=generator(settings.seed, "quantize", PLAIN))
    own = {str(error.site): error.sqnr_db for error in site_errors(graph, recipe, batches[:1])}
    before = reader_errors(graph, recipe, batches[:1])
    return {
        "sites": _site_data(quantized, after, own, before),
        "channel_ranges": channel_range_data(graph, quantized.recipe, batches),
    }


def channel_range_data(graph: Graph, recipe: Recipe, batches: Sequence[Inputs]) -> list[dict[str, Any]]:
    """Return `channel_ranges` of the JSON: a mapping for each place that the recipe migrates.

    Where there are more than 1,024 channels, neighbors share an entry, which holds the ranges of all of them.
    """
    return [_place_data(found) for found in migrated_ranges(graph, recipe, batches)]


def _site_data(
    quantized: Quantized,
    after: Mapping[str, float | None],
    own_before: Mapping[str, float | None],
    before: Mapping[str, float | None],
) -> list[dict[str, Any]]:
    return [
        {
            **told,
            "sqnr_db_before": own_before.get(told["site"]),
            "reader_sqnr_db": after.get(told["site"]),
            "reader_sqnr_db_before": before.get(told["site"]),
        }
        for told in quantized.sites
    ]


def _place_data(found: MigratedRanges) -> dict[str, Any]:
    channels = len(found.before.low)
    together = -(-channels // MOST_ENTRIES)
    return {
        "place": str(found.place),
        "channels": channels,
        "channels_per_entry": together,
        "before": _ranges_data(found.before, together),
        "after": _ranges_data(found.after, together),
    }


def _ranges_data(ranges: ChannelRanges, together: int) -> dict[str, Any]:
    widths = (ranges.high - ranges.low).double()
    widest, middle = int(widths.argmax()), float(widths.quantile(0.5))
    return {
        "low": _short(float(ranges.low.min())),
        "high": _short(float(ranges.high.max())),
        "widest_channel": widest,
        "widest_over_median": _short(float(widths[widest]) / middle) if middle > 0 else None,
        "lows": [_short(float(part.min())) for part in torch.split(ranges.low, together)],
        "highs": [_short(float(part.max())) for part in torch.split(ranges.high, together)],
    }


def _short(value: float) -> float:
    """Return a value with six significant digits: tens of thousands of them stand in one file."""
    return float(f"{value:.6g}")
