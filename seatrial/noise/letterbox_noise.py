"""Letterbox noise: the deployed system fills the border otherwise, puts the picture elsewhere or stretches it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from seatrial.core.noise import System, SystemNoise
from seatrial.core.pipeline import Letterbox
from seatrial.errors import BadInput, NoNoise, NotApplicable

LETTERBOX_OPTIONS = ("0", "114", "128", "centered", "corner", "stretched")
"""The fillings in use (black; YOLOv5 and YOLOX; middle grey) and the ways to place; any level may be asked for."""

_PLACES = ("centered", "corner", "stretched")


@final
@dataclass(frozen=True, kw_only=True)
class LetterboxNoise(SystemNoise):
    """Letterbox with `option`: a grey level of 0 to 255 for the border, or where the picture goes.

    `centered` puts it in the middle, `corner` in the upper left; `stretched` gives up its ratio, so that nothing is
    filled. Raises BadInput for an unknown option. Departures: not in SysNoise.
    """

    option: str

    def __post_init__(self) -> None:
        level = self.option.isascii() and self.option.isdecimal() and int(self.option) <= 255
        if self.option not in _PLACES and not level:
            raise BadInput(
                f"letterbox '{self.option}'",
                f"a grey level of 0 to 255, or one of: {', '.join(_PLACES)}",
                "write for example letterbox:114",
            )

    def alter(self, system: System) -> System:
        """Return the system with that letterbox; raises NotApplicable without one, NoNoise where it is the same."""
        letterbox = system.pipeline.letterbox
        if letterbox is None:
            raise NotApplicable("the pipeline has no letterbox")
        altered = self._altered(letterbox)
        if altered == letterbox:
            raise NoNoise(f"the pipeline's letterbox is {self.option} already")
        if not letterbox.keep_ratio:
            raise NotApplicable("the pipeline stretches pictures: nothing is filled and there is no place to choose")
        return replace(system, pipeline=replace(system.pipeline, letterbox=altered))

    def _altered(self, letterbox: Letterbox) -> Letterbox:
        if self.option == "stretched":
            return replace(letterbox, keep_ratio=False)
        if self.option in _PLACES:
            return replace(letterbox, centered=self.option == "centered")
        return replace(letterbox, value=int(self.option))
