"""Several artefacts in alternating rounds, so that ratios can be told with their spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64

from seatrial.core.target import Latency
from seatrial.deploy.duel import ChildProcess, calls_of_a_turn, median_of_a_turn
from seatrial.deploy.stopwatch import Subject

Rounds = Float64[np.ndarray, "rounds subjects"]


def alternated_ms(
    subjects: Sequence[Subject],
    *,
    threads: int,
    batch: int,
    rounds: int = 40,
    round_s: float = 0.04,
    launch: Callable[[Subject, int], ChildProcess] = ChildProcess,
) -> Rounds:
    """Return the milliseconds of one call of each subject in each round, the median of about `round_s` seconds.

    Every subject has a process of its own; rounds go forwards and backwards in turn. Divide columns by one another:
    what slows the machine for a while slows both. Raises WorkerDied where a process ends.
    """
    runners: list[ChildProcess] = []
    try:
        for subject in subjects:
            runners.append(launch(subject, threads))
            runners[-1].prepare(batch)
        counts = [calls_of_a_turn(runner, round_s) for runner in runners]
        told = np.zeros((rounds, len(subjects)))
        for turn in range(rounds):
            order = range(len(runners)) if turn % 2 == 0 else reversed(range(len(runners)))
            for i in order:
                told[turn, i] = median_of_a_turn(runners[i].calls(counts[i]))
        return told
    finally:
        for runner in runners:
            runner.end()


def latency_of(column: Float64[np.ndarray, " rounds"], batch: int, threads: int) -> Latency:
    """Return the latency that rounds tell; its percentiles are those of rounds, not of single calls."""
    p10, median, p90 = (float(value) for value in np.percentile(column, [10, 50, 90]))
    return Latency(median, p10, p90, len(column), batch, threads)
