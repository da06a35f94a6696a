"""One sample that cannot be used; it is listed in the result and never ends a run by itself."""

from __future__ import annotations

from seatrial.errors import SeatrialError


class BadSample(SeatrialError):
    """A sample that cannot be read or decoded; `reason` says why in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
