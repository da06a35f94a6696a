"""How finely scales are cut: per tensor, channel or group of weights; per tensor, token or group of activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self, final

from torch import fx

from seatrial.core.carrying import carries
from seatrial.core.graph import Graph
from seatrial.core.precision import Precision
from seatrial.core.sites import Site, op_name, operators, site_of
from seatrial.errors import BadInput
from seatrial.quant.operator_kinds import PRODUCTS

_WEIGHTS, _ACTIVATIONS = ("tensor", "channel"), ("tensor", "token")


@final
@dataclass(frozen=True)
class Granularity:
    """What one scale covers: `tensor`, `channel` or a group of so many inputs for weights; `tensor`, `token` or a
    group of so many channels of a token for activations.

    Scales of tokens are dynamic; the products of attentions then stay float.
    Source: Wei et al. 2023, section 5.1 (per-tensor, per-channel, per-token and per-group settings); Yao et al. 2022.
    """

    weights: str | int = "channel"
    activations: str | int = "tensor"

    @classmethod
    def parse(cls, weights: str, activations: str) -> Self:
        """Read `tensor`, `channel`, `token` or `group:N`; raises BadInput for anything else."""
        return cls(_parsed(weights, _WEIGHTS, "weights"), _parsed(activations, _ACTIVATIONS, "activations"))

    @property
    def group(self) -> int | None:
        """The number of inputs of a group of weights, None where they are not grouped."""
        return self.weights if isinstance(self.weights, int) else None

    def of(self, graph: Graph, precision: Mapping[Site, Precision]) -> dict[Site, Precision]:
        """Return what is asked of each site with this granularity."""
        named = operators(graph)
        names = {node: name for name, node in named.items()}
        found: dict[Site, Precision] = {}
        for site, wanted in precision.items():
            if wanted.float_type is not None:
                found[site] = wanted
            elif site.port == "weight":
                found[site] = self._of_weight(named[site.operator], wanted)
            elif self.activations == "tensor":
                found[site] = wanted
            else:
                found |= self._of_tokens(names, named[site.operator], site, wanted)
        return found

    def _of_tokens(
        self, names: Mapping[fx.Node, str], node: fx.Node, site: Site, wanted: Precision
    ) -> dict[Site, Precision]:
        """Return dynamic rounds at the linear operators that read a site, where a row is a token with all channels."""
        readers = _readers(node) if site.port == "output" else [node]
        if any(op_name(reader) not in {"linear", *PRODUCTS} for reader in readers):
            return {site: wanted}
        group = self.activations if isinstance(self.activations, int) else None
        dynamic = replace(wanted, dynamic=True, group=group, tie=None)
        return {site_of(names[reader], "input0"): dynamic for reader in readers if op_name(reader) == "linear"}

    def _of_weight(self, node: fx.Node, wanted: Precision) -> Precision:
        if isinstance(self.weights, int) and op_name(node) == "linear":
            return replace(wanted, axis=None, group=self.weights, signed=None, narrow=False)
        return replace(wanted, axis=None) if self.weights == "tensor" else wanted


def _parsed(text: str, known: tuple[str, ...], what: str) -> str | int:
    kind, _, count = text.partition(":")
    if kind == "group" and count.isdigit() and int(count) > 1:
        return int(count)
    if text not in known:
        raise BadInput(f"'{text}' for {what}", f"{', '.join(known)} or group:N", "write for example group:128")
    return text


def _readers(node: fx.Node) -> list[fx.Node]:
    """Return the operators that read a value, behind those that only move it."""
    found: list[fx.Node] = []
    for reader in node.users:
        if op_name(reader) != "sym_size":
            found += _readers(reader) if carries(reader) else [reader]
    return found
