"""Many artefacts against one: each is timed in alternation with the same reference, so that drift cancels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from seatrial.core.target import Artefact
from seatrial.deploy.energy import EnergyCounter
from seatrial.deploy.stopwatch import ChildProcess, Subject

_SLOW_MS = 15.0


@dataclass(frozen=True, eq=False)
class Bout:
    """What alternating rounds told: milliseconds of one call, of the challenger and of the reference, one a round."""

    challenger_ms: np.ndarray
    reference_ms: np.ndarray
    energy_mj: float | None = None
    """Of one call of the challenger, of the whole machine; None without a counter."""

    @property
    def ratios(self) -> np.ndarray:
        """The challenger's time over the reference's, round by round."""
        return self.challenger_ms / self.reference_ms


@dataclass(eq=False)
class Duel:
    """Two processes of one runtime: the reference stays loaded, challengers come and go.

    A round gives each side about `round_s` seconds of calls, in turn and backwards the next time; the first call of a
    turn wakes the process up and does not count.
    """

    reference: Subject
    threads: int
    batch: int = 1
    rounds: int = 8
    round_s: float = 0.03
    energy: EnergyCounter | None = None
    launch: Callable[[Subject, int], ChildProcess] = field(default=ChildProcess, repr=False)

    def __enter__(self) -> Duel:
        with ExitStack() as running:
            self._home = self.launch(self.reference, self.threads)
            running.callback(self._home.end)
            self._guest = self.launch(self.reference, self.threads)
            running.callback(self._guest.end)
            self._home.prepare(self.batch)
            self._home_calls = calls_of_a_turn(self._home, self.round_s)
            running.pop_all()  # both go on; what raised before ends what was launched
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._home.end()
        self._guest.end()

    def bout(self, artefact: Artefact, *, rounds: int | None = None) -> Bout:
        """Return the rounds of one artefact against the reference; raises WorkerDied where its process ends."""
        self._guest.open(Subject(self.reference.runtime, artefact))
        self._guest.prepare(self.batch)
        guest_calls = calls_of_a_turn(self._guest, self.round_s)
        told: list[tuple[float, float]] = []
        spent: list[float] = []
        for turn in range(rounds or self.rounds):
            home = median_of_a_turn(self._home.calls(self._home_calls)) if turn % 2 else 0.0
            before = self.energy.read_uj() if self.energy else ()
            guest = median_of_a_turn(self._guest.calls(guest_calls))
            if self.energy:
                spent.append(self.energy.between_mj(before, self.energy.read_uj()) / (guest_calls))
            home = home or median_of_a_turn(self._home.calls(self._home_calls))
            told.append((guest, home))
        both = np.asarray(told)
        return Bout(both[:, 0], both[:, 1], float(np.median(spent)) if spent else None)


def calls_of_a_turn(runner: ChildProcess, round_s: float) -> int:
    """Call until a call takes no less time than before; return the calls that take about `round_s` seconds.

    One of them wakes a sleeping process up and does not count; a slow call's first moments do not matter.
    """
    last = median_of_a_turn(runner.calls(2))
    for _ in range(4):
        now = median_of_a_turn(runner.calls(3 if last < _SLOW_MS else 1))
        if now > 0.95 * last:
            break
        last = now
    return 1 + max(2, min(200, math.ceil(1000 * round_s / max(last, 1e-3)))) if last < _SLOW_MS else 1


def median_of_a_turn(times_ms: Sequence[float]) -> float:
    """Return the median of a turn's calls, but for the first where there are more."""
    return float(np.median(times_ms[1:] or times_ms))
