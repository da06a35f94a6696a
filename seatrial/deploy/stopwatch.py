"""Latency of deployed models: every model in a process of its own, measured in alternation."""

from __future__ import annotations

import json
import math
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seatrial.core.target import Artefact, Latency, Timing
from seatrial.errors import SeatrialError

_WORKER = Path(__file__).with_name("stopwatch_worker.py")
_ROOT = Path(__file__).resolve().parents[2]
_SLOW_MS = 500.0


@dataclass(frozen=True)
class Subject:
    """One artefact on one runtime."""

    runtime: str
    artefact: Artefact


class Runner(Protocol):
    """A loaded runtime that answers the stopwatch; times are in milliseconds."""

    def prepare(self, batch: int) -> float:
        """Load the model for a batch size and return the time that took."""
        ...

    def calls(self, count: int) -> Sequence[float]:
        """Run the model `count` times and return the time of each call."""
        ...

    def peak_memory_bytes(self) -> int:
        """Return the most memory that the process has held."""
        ...

    def end(self) -> None:
        """Stop the process."""
        ...


class WorkerDied(SeatrialError):
    """The process that ran an artefact ended or fell silent."""


class ChildProcess:
    """A runner in a child process that imports the runtime and nothing else; see `stopwatch_worker`."""

    def __init__(self, subject: Subject, threads: int, *, reply_s: float = 600.0) -> None:
        self._subject, self._reply_s = subject, reply_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by end()
        environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
        # By path and with -P: neither seatrial/__init__ nor this folder, whose files are named like runtimes, is seen.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        self._threads = threads
        self.open(subject)

    def open(self, subject: Subject) -> None:
        """Take another artefact of the same runtime in place of the one that was open; `prepare` loads it."""
        self._subject, artefact = subject, subject.artefact
        self._ask(
            do="open",
            runtime=subject.runtime,
            path=str(artefact.path.resolve()),
            format=artefact.format,
            settings=dict(artefact.settings),
            threads=self._threads,
        )

    def prepare(self, batch: int) -> float:
        return float(self._ask(do="prepare", batch=batch)["load_ms"])

    def calls(self, count: int) -> Sequence[float]:
        return [float(ms) for ms in self._ask(do="calls", count=count)["ms"]]

    def peak_memory_bytes(self) -> int:
        return int(self._ask(do="memory")["peak_memory_bytes"])

    def end(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # it died with a request unread; there is nothing left to flush
        try:
            self._process.wait(timeout=2)  # the end of its input ends it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _ask(self, **request: object) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(self._reply_s):
                self._process.kill()
                raise self._death(f"no answer for {self._reply_s:g} s")
        line = stdout.readline()
        if not line:
            raise self._death()
        reply = json.loads(line)
        if "error" in reply:
            raise self._death(str(reply["error"]))
        return reply

    def _death(self, reason: str | None = None) -> WorkerDied:
        if reason is None:
            code = self._process.wait()
            self._log.seek(0, os.SEEK_END)
            self._log.seek(max(0, self._log.tell() - 4000))
            lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
            last = f", {lines[-1][:300]}" if lines else ""
            reason = (f"signal {-code}" if code < 0 else f"exit status {code}") + last
        name, runtime = self._subject.artefact.path.name, self._subject.runtime
        return WorkerDied(f"measuring {name} on {runtime} failed: {reason}")


def _launch(subject: Subject, threads: int) -> Runner:
    return ChildProcess(subject, threads)


@dataclass(frozen=True)
class Stopwatch:
    """Measures subjects in rounds: some calls of the first, some of the second, ..., backwards in the next round.

    Each subject runs at least `least_calls` calls and `least_s` seconds a batch size, unless `most_s` seconds are
    over before (then at least three calls). A round gives every subject about `round_s` seconds. Calls that wake a
    sleeping process up are not counted.
    """

    least_calls: int = 30
    least_s: float = 0.3
    most_s: float = 10.0
    round_s: float = 0.05
    launch: Callable[[Subject, int], Runner] = field(default=_launch, repr=False)
    clock_s: Callable[[], float] = field(default=time.monotonic, repr=False)

    def measure(self, subjects: Sequence[Subject], *, threads: int, batches: Sequence[int] = (1, 8)) -> list[Timing]:
        """Return one Timing a subject, in order; raises WorkerDied that names the artefact of a process that died.

        Law: what a subject's figures tell does not depend on its company (benchmarks/stopwatch.py).
        """
        runners: list[Runner] = []
        try:
            for subject in subjects:
                runners.append(self.launch(subject, threads))
            loads: list[float] = []
            latencies: list[list[Latency]] = [[] for _ in subjects]
            for batch in batches:
                prepared = [runner.prepare(batch) for runner in runners]
                loads = loads or prepared
                for i, times_ms in enumerate(self._rounds(runners)):
                    latencies[i].append(_latency(times_ms, batch, threads))
            peaks = [runner.peak_memory_bytes() for runner in runners]
        finally:
            for runner in runners:
                runner.end()
        largest = max(range(len(batches)), key=lambda i: batches[i])
        return [
            Timing(tuple(told), 1000 * told[largest].batch / told[largest].median, load, peak)
            for told, load, peak in zip(latencies, loads, peaks, strict=True)
        ]

    def _rounds(self, runners: Sequence[Runner]) -> list[list[float]]:
        """Return the times of each runner's calls in milliseconds."""
        counts, woken = [], []
        for runner in runners:
            warm_ms = max(_warm_up(runner), 1e-3)
            counts.append(max(2, min(200, math.ceil(1000 * self.round_s / warm_ms))) if warm_ms < _SLOW_MS else 1)
            woken.append(warm_ms < _SLOW_MS)  # a slow call's first milliseconds do not matter
        times: list[list[float]] = [[] for _ in runners]
        start_s, forward = self.clock_s(), True
        while not all(self._enough(told) for told in times):
            late = self.clock_s() - start_s > self.most_s * len(runners)
            if late and all(len(told) >= 3 for told in times):
                break
            order = range(len(runners)) if forward else reversed(range(len(runners)))
            for i in order:
                times[i] += list(runners[i].calls(counts[i] + woken[i]))[woken[i] :]
            forward = not forward
        return times

    def _enough(self, times_ms: Sequence[float]) -> bool:
        return len(times_ms) >= self.least_calls and sum(times_ms) >= 1000 * self.least_s


def _warm_up(runner: Runner) -> float:
    """Call until a call takes no less time than before, and return the milliseconds of the last ones."""
    last = float(np.median(runner.calls(2)[-1:]))
    for _ in range(5):
        now = float(np.median(runner.calls(3)))
        if now > 0.95 * last:
            return now
        last = now
    return last


def _latency(times_ms: Sequence[float], batch: int, threads: int) -> Latency:
    p10, median, p90 = (float(value) for value in np.percentile(times_ms, [10, 50, 90]))
    return Latency(median, p10, p90, len(times_ms), batch, threads)
