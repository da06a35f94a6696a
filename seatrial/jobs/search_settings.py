"""What a user may ask of a search over precisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from seatrial.catalogue import find
from seatrial.errors import BadInput


@dataclass(frozen=True)
class SearchSettings:
    """Options of `seatrial quantize --method ohq`; see the command line's help for each.

    `quantizer` plans the grids, and the migrations where it has any: of the uniform networks and of the choice that is
    delivered each at its own precisions; the search between them uses those of the uniform 8-bit network. One with
    grids that no integer kernel reads is refused when it has planned. Raises BadInput for a name that is no quantizer.
    `batch` is the batch size that latency is measured at, `time_budget_s` covers everything from planning to the last
    measurement but the evaluation on data. Bounds are None where there is none.
    """

    time_budget_s: float = 300.0
    batch: int = 1
    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    max_energy_mj: float | None = None
    sensitivity: Literal["mask-guided", "direct"] = "mask-guided"
    quantizer: str = "nearest"

    def __post_init__(self) -> None:
        for name, value in (
            ("--time-budget", self.time_budget_s),
            ("--max-latency-ms", self.max_latency_ms),
            ("--max-size-mb", self.max_size_mb),
            ("--max-energy-mj", self.max_energy_mj),
        ):
            if value is not None and not 0 < value < float("inf"):
                raise BadInput(f"{name} {value:g}", "more than 0", "give a larger number, or leave it out")
        if self.batch < 1:
            raise BadInput(f"--search-batch {self.batch}", "at least 1", "give a larger number")
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise BadInput(
                f"--max-drop {self.max_drop:g}", "a share from 0 to 1, or a percentage", "write for example 1%"
            )
        find("quantizer", self.quantizer)
        if self.sensitivity not in ("mask-guided", "direct"):
            raise BadInput(f"--sensitivity {self.sensitivity}", "mask-guided or direct", "pick one")
