"""Whoever computes groups: the sweeping process itself, a local process, or an actor on a Ray cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

from seatrial.bench.group import run_group
from seatrial.bench.pictures import Pictures
from seatrial.bench.plan import Plan, Subject
from seatrial.bench.references import References
from seatrial.bench.store import Store

OpenSubjects = Callable[[], Sequence[Subject]]


@final
class Worker:
    """Opens the subjects once and then finishes one group after another; `close` frees them."""

    def __init__(self, open_subjects: OpenSubjects, plan: Plan, folder: Path, retry_failed: bool = False) -> None:
        # The store is there already: a worker that does not see it has another disk.
        self._store = Store(folder, create=False)
        self._plan, self._retry_failed = plan, retry_failed
        self._pictures = Pictures(plan, folder / "cache")
        self._references = References()
        self._groups = plan.groups
        self._subjects = list(open_subjects())

    def run(self, index: int, wait: bool) -> bool:
        """Finish a group; return False where another process has it and `wait` is off."""
        return run_group(
            self._groups[index],
            self._subjects,
            self._plan,
            self._store,
            self._pictures,
            references=self._references,
            wait=wait,
            retry_failed=self._retry_failed,
        )

    def close(self) -> None:
        """Free the subjects and the threads."""
        self._pictures.close()
        for subject in self._subjects:
            subject.close()


@final
class Agenda:
    """Which group comes next: those that another process has are put off, and waited for at the end.

    `order` holds the indices of all groups as they are to be dealt; None: as they come.
    """

    def __init__(
        self,
        names: Sequence[str],
        progress: Callable[[int, int, str], None] | None,
        order: Sequence[int] | None = None,
    ) -> None:
        self._names, self._progress = names, progress
        self._open = deque((index, False) for index in (range(len(names)) if order is None else order))
        self._done = 0

    def __len__(self) -> int:
        return len(self._open)

    def take(self) -> tuple[int, bool]:
        """Return the next group and whether to wait for it."""
        return self._open.popleft()

    def settle(self, index: int, finished: bool) -> None:
        """Note how it went; `progress` is called with (done, total, name) for a finished group."""
        if not finished:
            self._open.append((index, True))
            return
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, len(self._names), self._names[index])
