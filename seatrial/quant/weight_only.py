"""Where rounds stand when weights alone are rounded: linear operators, but for the last."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from seatrial.core.constants import parameter_at
from seatrial.core.graph import Graph
from seatrial.core.precision import Precision
from seatrial.core.sites import Site, op_name, operators, site_of
from seatrial.errors import BadInput


def weight_only(
    graph: Graph, bits: int, group: int | None = 128, *, keep: Iterable[str] = (), head: bool = False
) -> dict[Site, Precision]:
    """Return what is asked of weights so that all else stays float: so many bits in groups along their inputs.

    Every linear operator with a constant weight, but for the last (the head) unless `head`; embeddings stay float.
    Without `group` one grid an output channel. Operators whose name or module path matches a glob of `keep` stay
    float. Raises BadInput for a graph without such an operator and for a pattern that matches none.

    Source: the practice of Frantar et al. 2022 and Lin et al. 2023, who leave embeddings and head alone.
    """
    linear = [
        name
        for name, node in operators(graph).items()
        if op_name(node) == "linear" and parameter_at(graph.module, node, 1) is not None
    ]
    if not head:
        linear = linear[:-1]
    if not linear:
        raise BadInput("a graph without a linear operator before its head", "at least one", "leave it in float")
    kept = set[str]()
    for pattern in keep:
        matched = {
            name for name in linear if any(fnmatchcase(text, pattern) for text in (name, name.rsplit("/", 1)[0]))
        }
        if not matched:
            raise BadInput(f"--keep '{pattern}'", "operators with rounded weights", f"name one such as '{linear[0]}'")
        kept |= matched
    wanted = (
        Precision(bits, signed=False, group=group) if group else Precision(bits, signed=True, symmetric=True, axis=0)
    )
    return {site_of(name, "weight"): wanted for name in linear if name not in kept}
