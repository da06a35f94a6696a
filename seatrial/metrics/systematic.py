"""Systematic robustness: accuracy over the choices of a deployment, and which choices cost most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from seatrial.core.noise import NoiseSpec
from seatrial.errors import BadInput
from seatrial.metrics.accuracy import share
from seatrial.metrics.joining import column, joined


@dataclass(frozen=True)
class Drops:
    """What one system noise costs: mean and largest drop over its options, and the option of the largest, fractions."""

    noise: str
    mean: float
    most: float
    worst: NoiseSpec

    def row(self) -> dict[str, Any]:
        """Return the JSON of a summary's `system`."""
        return {"noise": self.noise, "mean": self.mean, "max": self.most, "option": self.worst.option}


def systematic_robustness(accuracies: Sequence[float], *, ddof: int = 1) -> tuple[float, float]:
    """Return (SR mean, SR standard deviation) over accuracies of cells such as decoder by resize, in their unit.

    With `ddof` 1 the deviations are those printed in tables 7 and 8 of SysNoise (Wang et al. 2023); RobustART's code
    takes 0. Raises BadInput for fewer than `ddof` + 1 cells.
    """
    if len(accuracies) <= ddof:
        raise BadInput(f"{len(accuracies)} accuracies", f"at least {ddof + 1}", "ask for more decoders or resizes")
    values = np.asarray(accuracies, dtype=np.float64)
    return float(values.mean()), float(values.std(ddof=ddof))


def drop(clean: pa.Table, noisy: pa.Table) -> float:
    """Return clean minus noisy top-1, a fraction, on the samples that both tables hold."""
    left, right = joined(clean, noisy)
    return share(column(clean, "correct")[left]) - share(column(noisy, "correct")[right])


def drops(costs: Mapping[NoiseSpec, float]) -> list[Drops]:
    """Return, for each system noise, the mean and largest drop over its options, in the order they come.

    `costs` holds the drop at each option, such as `drop` gives. Ties go to the first option.
    Source: SysNoise (Wang et al. 2023), section 3: mean and max of the difference.
    """
    by_noise: dict[str, dict[NoiseSpec, float]] = {}
    for spec, cost in costs.items():
        by_noise.setdefault(spec.name, {})[spec] = cost
    return [
        Drops(name, float(np.mean(list(found.values()))), max(found.values()), max(found, key=found.__getitem__))
        for name, found in by_noise.items()
    ]


def chain_rows(steps: Iterable[tuple[NoiseSpec, float, float]]) -> list[dict[str, Any]]:
    """Return the JSON of a summary's `chain` from steps with their figure and drop: each names the noise it adds."""
    return [
        {"noise": spec.name.split("+")[-1], "option": str(spec.option).split("+")[-1], "value": value, "drop": lost}
        for spec, value, lost in steps
    ]
