"""Precision noise: the deployed system computes in a shorter type."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, final, get_args

from seatrial.core.noise import System, SystemNoise
from seatrial.errors import NoNoise, unknown_name

Narrow = Literal["fp16", "bf16", "int8"]
PRECISION_OPTIONS: tuple[Narrow, ...] = get_args(Narrow)


@final
@dataclass(frozen=True, kw_only=True)
class PrecisionNoise(SystemNoise):
    """Run the graph in `option`, fp16, bf16 or int8 (Wang et al. 2023, SysNoise, arXiv 2307.00280, data precision).

    Raises BadInput for an unknown option. Departures: bf16 is added; the paper does not say how its INT8 is calibrated:
    int8 here is the post-training plan of 8-bit weights and activations that the run made for the target, not that of
    the runtime's own quantizer.
    """

    option: Narrow

    def __post_init__(self) -> None:
        if self.option not in PRECISION_OPTIONS:
            raise unknown_name("precision", self.option, PRECISION_OPTIONS)

    def alter(self, system: System) -> System:
        """Return the system with that arithmetic; raises NoNoise where it is the same."""
        if system.arithmetic == self.option:
            raise NoNoise(f"the graph runs in {self.option} already")
        return replace(system, arithmetic=self.option)
