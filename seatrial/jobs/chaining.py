"""The chain of the combined drop: system noises one upon another, each at its worst option."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa

from seatrial.bench.plan import Plan
from seatrial.core.noise import NoiseSpec
from seatrial.jobs.measured import Cells
from seatrial.jobs.noises import parse_noise, text_of
from seatrial.metrics.systematic import drops

# The order in which a picture meets them; figure 3 of SysNoise adds them up like this.
_ROAD = (
    *("decoder", "exif", "color", "resize", "letterbox", "precision", "ceil_mode", "upsample", "align_corners"),
    "box_offset",
)


def single_noises(answered: Cells, label: str) -> dict[NoiseSpec, pa.Table]:
    """Return the records of one variant under each system noise alone that changed something."""
    return {
        spec: entry.table
        for (name, spec), entry in answered.found.items()
        if name == label and spec is not None and spec.family == "system" and "+" not in spec.name
        if entry.status == "done"
    }


def missing_steps(answered: Cells, label: str, chain: Plan) -> list[str]:
    """Return a warning for each step of the chain without records: the combined drop is then that of fewer noises."""
    told = []
    for spec, _ in chain.noises:
        entry = answered.found.get((label, spec))
        if entry is None or entry.status not in ("done", "no-noise"):
            why = "the cell is missing" if entry is None else f"{entry.status}: {entry.reason}"
            told.append(f"{label}: the combined drop is without {text_of(spec)} ({why})")
    return told


def chain_plan(costs: Mapping[NoiseSpec, float], base: Plan) -> Plan:
    """Return the plan of the combined drop, one noise more at each step of the road, from the drop at each option.

    With fewer than two noises there is nothing to combine, and the plan has none.
    """
    worst = {found.noise: found.worst for found in drops(costs)}
    texts = [text_of(worst[name]) for name in _ROAD if name in worst]
    steps = ["+".join(texts[: count + 1]) for count in range(len(texts))]
    return replace(base, noises=tuple(parse_noise(text) for text in steps)) if len(steps) > 1 else base
