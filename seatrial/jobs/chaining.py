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


def chain_plan(costs: Mapping[NoiseSpec, float], base: Plan) -> Plan:
    """Return the plan of the combined drop, one noise more at each step of the road, from the drop at each option.

    With fewer than two noises there is nothing to combine, and the plan has none.
    """
    worst = {found.noise: found.worst for found in drops(costs)}
    texts = [text_of(worst[name]) for name in _ROAD if name in worst]
    steps = ["+".join(texts[: count + 1]) for count in range(len(texts))]
    return replace(base, noises=tuple(parse_noise(text) for text in steps)) if len(steps) > 1 else base
