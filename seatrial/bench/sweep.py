"""All questions of a plan, answered by one process or many, resumed where it was left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from seatrial.bench.cluster import run_on_cluster
from seatrial.bench.plan import Group, Plan
from seatrial.bench.processes import run_in_processes
from seatrial.bench.store import Store
from seatrial.bench.worker import Agenda, OpenSubjects, Worker
from seatrial.errors import BadInput


def sweep(
    open_subjects: OpenSubjects,
    plan: Plan,
    store: Store,
    *,
    jobs: int = 1,
    ray_address: str | None = None,
    retry_failed: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Finish every cell of the plan that the store does not have; `progress` gets (done, total, name) in groups.

    `open_subjects` is called once in each process that computes, and what it opened is closed there; with `jobs`
    above 1 or a cluster it has to be picklable (a module's function or a frozen dataclass with `__call__`). Laws:
    record files are byte-identical for any number of processes, kills and resumptions, and a cell is written once.
    Failed cells are tried again only with `retry_failed`. Raises BadInput for a full folder; on Ctrl-C finished cells
    stay.
    """
    if jobs < 1:
        raise BadInput(f"{jobs} jobs", "at least 1", "give --jobs a positive number")
    groups = plan.groups
    alone = jobs == 1 and ray_address is None
    agenda = Agenda([str(group) for group in groups], progress, None if alone else _heaviest_first(groups))
    if ray_address is not None:
        run_on_cluster(open_subjects, plan, store.folder, agenda, address=ray_address, retry_failed=retry_failed)
        return
    if jobs > 1:
        run_in_processes(open_subjects, plan, store.folder, agenda, jobs=jobs, retry_failed=retry_failed)
        return
    worker = Worker(open_subjects, plan, store.folder, retry_failed)
    try:
        while len(agenda):
            index, patient = agenda.take()
            agenda.settle(index, worker.run(index, patient))
    finally:
        worker.close()


def _heaviest_first(groups: Sequence[Group]) -> list[int]:
    """Return the indices of groups so that no long one is left to a single worker at the end: clean data, then attacks.

    System noises load every picture twice, corruptions once.
    """
    weights = {None: 0, "attack": 1, "system": 2, "corruption": 3}
    return sorted(range(len(groups)), key=lambda index: weights[spec.family if (spec := groups[index].spec) else None])
