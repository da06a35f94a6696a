"""How much of a network's time each operator group takes, as the runtime's own counters tell it."""

from __future__ import annotations

import re

from seatrial.core.target import Artefact, Target
from seatrial.deploy.operators import profile
from seatrial.errors import NotApplicable
from seatrial.quant.groups import Grouping


def operator_shares(target: Target, artefact: Artefact, grouping: Grouping, threads: int) -> dict[str, float]:
    """Return the share of the operators' time (a fraction) by group; empty where the runtime does not tell.

    The runtime's operators carry the path of their module; what it makes of several modules, and what stands in none of
    the groups (norms, a softmax), is not counted for any.
    """
    try:
        told = profile(target, artefact, threads=threads, runs=10)
    except NotApplicable:
        return {}
    owners: dict[tuple[str, str], str] = {}
    for group in grouping.groups:
        for operator in group.operators:
            path, kind = operator.rsplit("/", 1)
            owners[path, kind.split("#")[0]] = group.name
    shares: dict[str, float] = {}
    for row in told:
        owner = _owner(row.name, owners)
        if owner is not None:
            shares[owner] = shares.get(owner, 0.0) + row.share
    return shares


def _owner(name: str, owners: dict[tuple[str, str], str]) -> str | None:
    """Return the group of the longest module path that a runtime's name begins with, or holds behind a prefix."""
    found = [
        (len(path), group)
        for (path, _), group in owners.items()
        if path and re.search(rf"(^|_){re.escape(path)}(\.weight_codes)?/", name)
    ]
    return max(found)[1] if found else None
