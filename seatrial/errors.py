"""What can go wrong, said in three parts: what came, what was wanted, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SeatrialError(Exception):
    """A failure that seatrial explains in one line; `exit_code` is what the command line ends with."""

    exit_code = 1


class BadInput(SeatrialError):
    """The user's input cannot be used: says what came, what was wanted, and what to do."""

    exit_code = 2

    def __init__(self, came: str, wanted: str, do: str) -> None:
        super().__init__(f"{came}; wanted {wanted}; {do}")
        self.came, self.wanted, self.do = came, wanted, do

    def __reduce__(self) -> tuple[type[BadInput], tuple[str, str, str]]:
        return type(self), (self.came, self.wanted, self.do)


class LimitBroken(SeatrialError):
    """A limit that the user stated (`--fail-if`, `--max-drop`) does not hold."""

    exit_code = 3


class NotApplicable(SeatrialError):
    """A question that has no answer for this subject; the cell's status becomes `not-applicable`."""


class NoNoise(SeatrialError):
    """A noise that changes nothing on this build; the cell's status becomes `no-noise`."""


def missing_extra(package: str, extra: str, purpose: str) -> BadInput:
    """Return the error for an optional package that is not installed, with the line that installs it."""
    return BadInput(
        f"{package} is not installed",
        f"the extra '{extra}' for {purpose}",
        f"run: pip install 'seatrial[{extra}]'",
    )


def unknown_name(kind: str, name: str, known: Iterable[str]) -> BadInput:
    """Return the error for a name that is not in `known`, with the nearest match."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    do = f"did you mean '{near[0]}'?" if near else "pick one of those"
    return BadInput(f"unknown {kind} '{name}'", f"one of: {shown}", do)


def not_finite(place: object) -> BadInput:
    """Return the refusal of an activation that is not finite at a place, to be raised."""
    came = f"an activation that is not finite at {place}"
    return BadInput(came, "finite values on the calibration data", "check the data")


def no_calibration() -> BadInput:
    """Return the refusal of calibration without any batch, to be raised."""
    return BadInput("no calibration data", "at least one batch", "pass calibration samples")
