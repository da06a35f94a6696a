"""A sweep killed at any moment and resumed, by one process or two, gives the same bytes and writes no cell twice.

Run as a script this file is a nursery: it imports once, and each line on its standard input starts sweeps in a process
group of their own, forked before any thread exists. So a kill costs milliseconds, not the import of torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from test_bench_sweep import BROKEN, GUESS, NEAREST, NOISES, NOTHING, SPECKLE, STEP, Fleet, a_plan

from seatrial.bench.plan import Plan
from seatrial.bench.store import Store
from seatrial.bench.sweep import sweep

DELAY_S = 0.012
KILLS = 10
SEVERITIES = 3
# A group asks at least 3 subjects for 3 batches at DELAY_S each ("nothing" and "broken" ask nobody), so that within
# this time no process finishes a whole one.
PATIENCE_S = 8 * DELAY_S


def the_plan(severities: int = SEVERITIES) -> Plan:
    """With all severities, enough groups that ten kills strike a sweep that is under way still."""
    wanted = {SPECKLE, STEP, GUESS, NEAREST, BROKEN, NOTHING}
    chosen = [(spec, maker) for spec, maker in NOISES if spec in wanted]
    noises = [
        (type(spec)(spec.family, spec.name, spec.option, spec.norm, f"{spec.severity}-{i}"), maker)
        for i in range(severities)
        for spec, maker in chosen
    ]
    return a_plan(noises=tuple(noises))


def swept_in(folder: Path, log: Path, severities: int, end_at: str) -> None:
    """Sweep, and note each cell that lands, in a file that is only appended to; end as told at the first cell."""
    honest = os.replace

    def noted(source: Path, target: Path) -> None:
        if end_at == "before" and target.suffix == ".parquet":
            os.kill(os.getpid(), signal.SIGKILL)
        honest(source, target)
        if target.suffix == ".parquet":
            with log.open("a") as file:
                file.write(f"{target.name}\n")
            if end_at == "after":
                os.kill(os.getpid(), signal.SIGKILL)

    os.replace = noted
    sweep(Fleet(delay_s=DELAY_S), the_plan(severities), Store(folder))


def nursery() -> None:
    """Read `processes, severities, folder, log, end` lines; answer with the process group, then with its status."""
    import pandas  # noqa: F401  # pyarrow does this at its first array, and each child would do it again
    import PIL.PngImagePlugin  # noqa: F401

    for line in sys.stdin:
        count, severities, folder, log, end_at = line.rstrip("\n").split("\t")
        leader = os.fork()
        if leader == 0:
            os.setsid()
            os.write(1, b"%d\n" % os.getpid())  # not before: whoever reads it may kill the group at once
            children = []
            for _ in range(int(count)):
                if (child := os.fork()) == 0:
                    code = 1
                    try:
                        swept_in(Path(folder), Path(log), int(severities), end_at)
                        code = 0
                    finally:
                        os._exit(code)
                children.append(child)
            statuses = [os.waitpid(child, 0)[1] for child in children]
            os._exit(0 if not any(statuses) else 1)
        print(os.waitpid(leader, 0)[1], flush=True)


@dataclass(frozen=True)
class Sea:
    """A store, the log of what was written to it, and the nursery that starts sweeps on it."""

    folder: Path
    process: subprocess.Popen[str]

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def start(self, count: int = 1, severities: int = SEVERITIES, end_at: str = "") -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(count, severities, self.folder, self.log, end_at, sep="\t", file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def ended(self) -> int:
        """Wait for the sweeps and return the status of the last leader, 0 where all went well."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def cells(self) -> dict[str, tuple[int, int, bytes]]:
        """Each finished cell's inode, time of writing and content."""
        found = {}
        for path in self.folder.glob("cells/*.parquet"):
            status = path.stat()
            found[path.name] = status.st_ino, status.st_mtime_ns, path.read_bytes()
        return found

    def content(self) -> dict[str, bytes]:
        return {name: content for name, (_, _, content) in self.cells().items()}

    def writes(self) -> Counter[str]:
        return Counter(self.log.read_text().split()) if self.log.exists() else Counter()


@pytest.fixture(scope="module")
def sea(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Sea]]:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork and process groups")
    folder = tmp_path_factory.mktemp("sea")
    command = [sys.executable, __file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield lambda name: Sea(folder / name, process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def calm(sea: Callable[[str], Sea]) -> Sea:
    """A sweep that nobody disturbed."""
    mine = sea("calm")
    mine.start()
    assert mine.ended() == 0
    assert len(mine.cells()) == 4 * len(the_plan().groups)
    assert set(mine.writes().values()) == {1}
    return mine


def table(folder: Path) -> list[dict[str, object]]:
    sql = """SELECT c.variant, c.target, c.name, c.severity, c.status, count(r.sample) AS n, avg(r.correct::int) AS top1
             FROM cells c LEFT JOIN records r ON r.key = c.key GROUP BY ALL ORDER BY ALL"""
    return Store(folder, create=False).query(sql).to_pylist()


@pytest.mark.parametrize("count", [1, 2])
def test_killed_at_random_moments_and_resumed(sea: Callable[[str], Sea], calm: Sea, count: int) -> None:
    mine, landed = sea(f"stormy{count}"), {}
    rng = np.random.default_rng(count)
    for kill in range(KILLS):
        group = mine.start(count)
        # Every other kill waits for something new to have landed, so that the sweep advances however slow the machine.
        while kill % 2 and len(mine.cells()) == len(landed):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, PATIENCE_S / count))
        os.killpg(group, signal.SIGKILL)
        assert mine.ended() == signal.SIGKILL
        now = mine.cells()
        assert landed.items() <= now.items()  # the very files: nothing was written again
        assert all(calm.content()[name] == content for name, (_, _, content) in now.items())
        landed = now
    assert 0 < len(landed) < len(calm.cells())
    mine.start(count)
    assert mine.ended() == 0
    assert landed.items() <= mine.cells().items()
    assert mine.content() == calm.content()
    assert table(mine.folder) == table(calm.folder)
    # A kill between a cell's landing and its note may lose the note; no cell has two.
    assert set(mine.writes().values()) == {1}
    assert not list(mine.folder.glob("**/.*"))


@pytest.mark.parametrize("end_at", ["before", "after"])
def test_killed_at_the_very_moment_of_landing(sea: Callable[[str], Sea], calm: Sea, end_at: str) -> None:
    mine = sea(end_at)
    for finished in range(1, 4):
        mine.start(severities=1, end_at=end_at)
        assert mine.ended() != 0
        assert len(mine.cells()) == (finished if end_at == "after" else 0)
        # What the dead process had written aside is there, unseen, until the next one opens the store.
        assert len(list(mine.folder.glob("cells/.*.aside"))) == (0 if end_at == "after" else 1)
    mine.start(severities=1)
    assert mine.ended() == 0
    assert len(mine.cells()) == 4 * len(the_plan(1).groups)
    assert mine.content().items() <= calm.content().items()
    assert set(mine.writes().values()) == {1}
    assert not list(mine.folder.glob("**/.*"))


def test_two_processes_on_one_store_share_the_work(sea: Callable[[str], Sea], calm: Sea) -> None:
    mine = sea("pair")
    mine.start(2, severities=1)
    assert mine.ended() == 0
    assert len(mine.cells()) == 4 * len(the_plan(1).groups)
    assert mine.content().items() <= calm.content().items()
    assert mine.writes() == Counter(mine.cells().keys())


if __name__ == "__main__":
    nursery()
