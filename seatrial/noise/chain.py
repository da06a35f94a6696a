"""Several system noises at once, as a deployment that differs in several choices has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from seatrial.core.noise import System, SystemNoise
from seatrial.errors import BadInput, NoNoise


@final
@dataclass(frozen=True, kw_only=True)
class Chain(SystemNoise):
    """Apply `parts` one after the other (Wang et al. 2023, SysNoise, arXiv 2307.00280, figure 3, "combined").

    Raises BadInput without parts. Departures: a part that changes nothing here is passed over, so that one list of
    decoders by resizes has a cell for the system's own ones too.
    """

    parts: tuple[SystemNoise, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise BadInput("a chain of no noises", "at least one", "name system noises")

    def alter(self, system: System) -> System:
        """Return the system with every part; raises NoNoise where none changes it, NotApplicable where one cannot."""
        altered, reasons = system, []
        for part in self.parts:
            try:
                altered = part.alter(altered)
            except NoNoise as nothing:
                reasons.append(str(nothing))
        if len(reasons) == len(self.parts):
            raise NoNoise("; ".join(reasons))
        return altered
