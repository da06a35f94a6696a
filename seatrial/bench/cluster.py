"""Workers as actors on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seatrial.bench.plan import Plan
from seatrial.bench.worker import Agenda, OpenSubjects, Worker
from seatrial.errors import BadInput, missing_extra


def run_on_cluster(
    open_subjects: OpenSubjects, plan: Plan, folder: Path, agenda: Agenda, *, address: str, retry_failed: bool
) -> None:
    """Deal the agenda to actors on the Ray cluster at `address`; a cluster that is connected already is taken as it is.

    There are as many actors as its CPUs allow at `plan.threads` each. The store stands on a disk that all nodes
    share. Raises BadInput where Ray is missing, nothing answers at the address, or a node does not see the store.
    """
    try:
        import ray
    except ImportError as error:
        raise missing_extra("ray", "ray", "sweeps on a cluster") from error
    connected_before = ray.is_initialized()
    if not connected_before:
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())[:200]
            came = f"no Ray cluster at '{address}' ({said})"
            raise BadInput(came, "the address of a running one", "start it with: ray start --head") from error
    try:
        _run(ray, open_subjects, plan, folder, agenda, retry_failed)
    finally:
        if not connected_before:
            ray.shutdown()


def _run(ray: Any, open_subjects: OpenSubjects, plan: Plan, folder: Path, agenda: Agenda, retry_failed: bool) -> None:
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    cpus = max(1, min(plan.threads, max(nodes, default=1)))
    count = max(1, min(sum(node // cpus for node in nodes), len(agenda)))
    shared = ray.put(plan)
    hire = ray.remote(num_cpus=cpus)(Worker)
    actors = [hire.remote(open_subjects, shared, folder, retry_failed) for _ in range(count)]
    tasks: dict[Any, tuple[Any, int]] = {}
    idle = list(actors)
    try:
        while tasks or len(agenda):
            while idle and len(agenda):
                actor, (index, patient) = idle.pop(), agenda.take()
                tasks[actor.run.remote(index, patient)] = actor, index
            (answer, *_), _ = ray.wait(list(tasks))
            actor, index = tasks.pop(answer)
            try:
                agenda.settle(index, ray.get(answer))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayActorError as error:
                raise _lost(folder, error) from error
            idle.append(actor)
        ray.get([actor.close.remote() for actor in actors])
    finally:
        for actor in actors:
            ray.kill(actor)


def _lost(folder: Path, error: BaseException) -> BadInput:
    said = " ".join(str(error).split())[-300:]
    wanted = f"nodes that see {folder} and have all that the driver has installed"
    return BadInput(f"a Ray worker that ended ({said})", wanted, "put --out on a disk that all nodes share")
