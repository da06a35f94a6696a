"""The chain of the combined drop: system noises one upon another, each at its worst option."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa

from seatrial.bench.plan import Plan
from seatrial.jobs.measured import Cells
from seatrial.jobs.noises import parse_noise, text_of
from seatrial.metrics.systematic import drop, worst_options

# The order in which a picture meets them; figure 3 of SysNoise adds them up like this.
_ROAD = (
    *("decoder", "exif", "color", "resize", "letterbox", "precision", "ceil_mode", "upsample", "align_corners"),
    "box_offset",
)


def chain_plan(answered: Cells, label: str, base: Plan, by: Callable[[pa.Table, pa.Table], float] = drop) -> Plan:
    """Return the plan of the combined drop of one variant: one noise more at each step of the road.

    `by` gives the drop from clean to noisy records. Without two noises that changed something the plan has none.
    """
    clean = answered.records(label)
    if clean is None:
        return base
    single = {
        spec: entry.table
        for (name, spec), entry in answered.found.items()
        if name == label and spec is not None and spec.family == "system" and "+" not in spec.name
        if entry.status == "done"
    }
    worst = worst_options(clean, single, by)
    texts = [text_of(worst[name]) for name in _ROAD if name in worst]
    steps = ["+".join(texts[: count + 1]) for count in range(len(texts))]
    return replace(base, noises=tuple(parse_noise(text) for text in steps)) if len(steps) > 1 else base
