"""Quantize a graph for a target: place, plan, realise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from seatrial.catalogue import make
from seatrial.core.chance import generator
from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise
from seatrial.core.recipe import Recipe
from seatrial.jobs.settings import Settings
from seatrial.quant.placement import place
from seatrial.quant.site_error import blame, site_errors


@dataclass(frozen=True, eq=False)
class Quantized:
    """A recipe, the graph it gives, and what was lost at each site (`site`, `bits`, `sqnr_db`)."""

    recipe: Recipe
    graph: Graph
    sites: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]


def quantize_graph(graph: Graph, batches: list[Tensor], rules: PlacementRules, settings: Settings) -> Quantized:
    """Plan and carry out the quantization of `graph` for a runtime with these rules."""
    sites = place(graph, rules, Bits.parse(settings.bits), keep=settings.keep)
    quantizer = quantizer_of(settings)
    recipe = quantizer.plan(graph, batches, sites, rng=generator(settings.seed, "quantize", settings.method))
    warnings = list(recipe.notes)
    if any(wanted.bits == rules.weight_bits_cap < 8 for site, wanted in sites.items() if site.port == "weight"):
        warnings.append(
            f"weights have {rules.weight_bits_cap} bits for {rules.name}, but for depthwise convolutions: "
            "its 8-bit kernels saturate on this CPU"
        )
    errors = site_errors(graph, recipe, batches[:1])
    listed = tuple({"site": str(error.site), "bits": error.bits, "sqnr_db": error.sqnr_db} for error in errors)
    return Quantized(recipe, realise(graph, recipe), listed, tuple(warnings))


def quantizer_of(settings: Settings) -> Quantizer:
    """Return the quantizer that the settings name, with their options."""
    options: dict[str, Any] = {
        "bias_correction": settings.bias_correction,
        "equalization": settings.equalization,
    }
    if settings.ranges != "default":
        options["ranges"] = make("ranges", settings.ranges)
    return make("quantizer", settings.method, **options)


def blamed(graph: Graph, recipe: Recipe, batch: Tensor) -> str | None:
    """Return a sentence that names the site whose rounding alone moves the output most; None without sites."""
    found = blame(graph, recipe, batch)
    if not found:
        return None
    site, error = found[0]
    return f"the site to blame first is {site}: rounding it alone moves the output by {error:.1%}"
