"""Quantize a graph for a target: place, plan, realise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from seatrial.catalogue import find, load, make
from seatrial.core.chance import generator
from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits, Precision, parse_bits
from seatrial.core.predictor import Inputs
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise
from seatrial.core.recipe import Recipe
from seatrial.core.sites import Site, operators
from seatrial.errors import BadInput
from seatrial.jobs.settings import Settings
from seatrial.quant.granularity import Granularity
from seatrial.quant.placement import place
from seatrial.quant.site_error import blame, site_errors
from seatrial.quant.weight_only import weight_only


@dataclass(frozen=True, eq=False)
class Quantized:
    """A recipe, the graph it gives, and what was lost at each site in order (`site`, `bits`, `sqnr_db`)."""

    recipe: Recipe
    graph: Graph
    sites: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]


def quantize_graph(graph: Graph, batches: Sequence[Inputs], rules: PlacementRules, settings: Settings) -> Quantized:
    """Plan and carry out the quantization of `graph` for a runtime with these rules."""
    sites = sites_asked(graph, rules, settings)
    quantizer = quantizer_of(settings, pictures=graph.inputs[0].dtype.startswith("float"))
    recipe = quantizer.plan(graph, batches, sites, rng=generator(settings.seed, "quantize", settings.method))
    warnings = list(recipe.notes)
    if any(wanted.bits == rules.weight_bits_cap < 8 for site, wanted in sites.items() if site.port == "weight"):
        warnings.append(
            f"weights have {rules.weight_bits_cap} bits for {rules.name}, but for depthwise convolutions: "
            "its 8-bit kernels saturate on this CPU"
        )
    order = {name: place for place, name in enumerate(operators(graph))}
    errors = site_errors(graph, recipe, batches[:1])
    errors.sort(key=lambda e: (order[e.site.operator], e.site.port == "output", e.site.port))
    listed = tuple({"site": str(error.site), "bits": error.bits, "sqnr_db": error.sqnr_db} for error in errors)
    return Quantized(recipe, realise(graph, recipe), listed, tuple(warnings))


def sites_asked(graph: Graph, rules: PlacementRules, settings: Settings) -> dict[Site, Precision]:
    """Return what the settings ask of each site: of weights alone where they name no bits of activations.

    Raises BadInput for patterns that match nothing and for scales of activations that stay float.
    """
    bits, grain = parse_bits(settings.bits), Granularity.parse(settings.weights_per, settings.activations_per)
    if isinstance(bits, Bits):
        return grain.of(graph, place(graph, rules, bits, keep=settings.keep))
    if grain.activations != "tensor":
        came = f"--activations-per {settings.activations_per} with --bits {settings.bits}"
        raise BadInput(came, "activations that are rounded", "leave it out, or write for example --bits w4a8")
    wanted = weight_only(graph, bits.weights, grain.group, keep=settings.keep)
    return wanted if grain.group else grain.of(graph, wanted)


def quantizer_of(settings: Settings, *, pictures: bool = True) -> Quantizer:
    """Return the quantizer that the settings name, with their options.

    One that migrates has them for the rounds that come after. Raises BadInput for an option that was set and that the
    quantizer does not know, because it decides that itself.
    """
    corrected = pictures if settings.bias_correction is None else settings.bias_correction
    wanted: dict[str, Any] = {"bias_correction": corrected, "equalization": settings.equalization}
    if settings.ranges != "default":
        wanted["ranges"] = make("ranges", settings.ranges)
    known = {field.name for field in fields(load(find("quantizer", settings.method)))}
    if "grids" in known:
        return make("quantizer", settings.method, grids=make("quantizer", "nearest", **wanted))
    usual = Settings()
    for name in wanted:
        if name not in known and getattr(settings, name) != getattr(usual, name):
            option = f"--{name.replace('_', '-')}"
            raise BadInput(
                f"{option} with --method {settings.method}", "no such option: it decides that", "leave it out"
            )
    return make("quantizer", settings.method, **{name: value for name, value in wanted.items() if name in known})


def blamed(graph: Graph, recipe: Recipe, batch: Tensor) -> str | None:
    """Return a sentence that names the site whose rounding alone moves the output most; None without sites."""
    found = blame(graph, recipe, batch)
    if not found:
        return None
    site, error = found[0]
    return f"the site to blame first is {site}: rounding it alone moves the output by {error:.1%}"
