"""What a search changes at once: operators of one shape, of one kind, or of one block."""

from __future__ import annotations

import re
from collections import defaultdict

from seatrial.quant.groups import Grouping, OperatorGroup

Move = frozenset[str]
"""Names of groups that change their precision together."""


def shared_moves(grouping: Grouping) -> list[Move]:
    """Return the sets of groups of one role, kind, shape, stage or block, the largest first; each once."""
    sets: dict[tuple[str, str], set[str]] = defaultdict(set)
    for group in grouping.groups:
        for key in _keys(group):
            sets[key].add(group.name)
    every = {group.name for group in grouping.groups}
    moves = dict.fromkeys(frozenset(found) for found in sets.values() if found != every)
    return sorted(moves, key=lambda move: (-len(move), min(move)))


def single_moves(grouping: Grouping) -> list[Move]:
    """Return every group by itself."""
    return [frozenset({group.name}) for group in grouping.groups]


def _keys(group: OperatorGroup) -> list[tuple[str, str]]:
    path = group.name.rsplit("/", 1)[0]
    parts = path.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    keys = [
        ("shape", "|".join(group.shapes)),
        ("kind", group.kind + ("-depthwise" if _is_depthwise(group) else "")),
        ("role", re.sub(r"\b\d+\b", "*", group.name)),
    ]
    keys += [("block", ".".join(parts[: index + 1])) for index in numbers]
    keys += [("part", ".".join(parts[: index + 1])) for index in range(len(parts)) if not parts[index].isdigit()]
    return keys


def _is_depthwise(group: OperatorGroup) -> bool:
    return any(re.match(r"conv2d\([^,]*,\d+x1x", shape) for shape in group.shapes)
