"""Whether robustness under gradients is real: an attacker that knows less must not do more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from seatrial.core.noise import NoiseSpec
from seatrial.metrics.accuracy import survivors
from seatrial.metrics.joining import column, joined

_POINTS = 0.002
"""AutoAttack flags a black-box attack that beats white-box ones by 0.2 points of robust accuracy."""
_ZERO_SHARE = 0.5
_ONE_STEP = "fgsm"
_BLIND = {"square": "which sees scores only", "hopskipjump": "which sees answers only"}


def masking_findings(tables: Mapping[NoiseSpec | None, pa.Table]) -> list[dict[str, Any]]:
    """Return signs of masked gradients among the attacks of one variant, each with its figures and a sentence.

    `tables` maps noises (None: clean) to records. For each attack that climbs gradients: an attack found on the float
    parent, on scores or answers alone, or in one step where it takes many, that at the same budget leaves at least 0.2
    points fewer standing of the samples that both attacked; and gradients of which half or more entries are exactly 0.
    Source: Croce and Hein 2020, AutoAttack's flags; Athalye et al. 2018, section 3.1.
    """
    clean = tables.get(None)
    if clean is None:
        return []
    attacks = {spec: table for spec, table in tables.items() if spec is not None and spec.family == "attack"}
    found: list[dict[str, Any]] = []
    for spec, table in attacks.items():
        if spec.name in _BLIND or spec.from_float or "zero_gradient" not in table.column_names:
            continue
        zeros = column(table, "zero_gradient").astype(np.float64)
        if not np.isfinite(zeros).any():
            continue  # this attack climbed no gradient
        share = float(np.nanmean(zeros))
        head = {"attack": spec.name, "norm": spec.norm, "severity": spec.severity}
        if share >= _ZERO_SHARE:
            text = f"{share:.0%} of the entries of the first gradient are exactly 0"
            found.append({**head, "sign": "zero gradients", "by": None, "value": share, "text": text})
        for other, weaker in attacks.items():
            how = _weakness(other, spec)
            if _budget(other) != _budget(spec) or how is None:
                continue
            gain = _gain(clean, table, weaker)
            if gain >= _POINTS:
                text = f"{other.name}, {how}, leaves {100 * gain:.1f} points fewer standing than {spec.name}"
                found.append({**head, "sign": "weaker attacker wins", "by": other.name, "value": gain, "text": text})
    return found


def _weakness(other: NoiseSpec, spec: NoiseSpec) -> str | None:
    """Return what makes `other` the weaker attacker, None where nothing does."""
    if other.name in _BLIND:
        return _BLIND[other.name]
    if other.from_float:
        return "found on the float parent" if other.name == spec.name else None
    return "which takes one step" if other.name == _ONE_STEP != spec.name else None


def _budget(spec: NoiseSpec) -> tuple[object, ...]:
    return spec.norm, spec.severity, spec.eight_bit


def _gain(clean: pa.Table, attacked: pa.Table, weaker: pa.Table) -> float:
    """Return by how much less, of the samples that all three hold, stands under the weaker attack, a fraction."""
    asked = clean.take(pa.array(joined(clean, attacked)[0]))
    asked = asked.take(pa.array(joined(asked, weaker)[0]))
    left = [int(survivors(asked, [table]).sum()) for table in (attacked, weaker)]
    return (left[0] - left[1]) / len(asked)
